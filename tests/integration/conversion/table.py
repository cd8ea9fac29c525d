"""Writes docs/estimators.md: the form, the difference and the speed-up of every model of the tables of cases.

Run it with `make docs-estimators`; it takes some minutes, because it trains, converts and measures all of them.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import mlflow.sklearn
import pandas as pd
import pytest
from mlflow.models import infer_signature

from mlflow_deploy.conversion import Conversion, make_servable
from mlflow_deploy.conversion.choose import pyfunc_servable
from mlflow_deploy.conversion.latency import BATCHES, measure
from mlflow_deploy.serving.inprocess import open_in_process
from tests.integration.conversion.boosting_cases import LIGHTGBM, PIPELINES, XGBOOST
from tests.integration.conversion.cases import CASES, Case
from tests.integration.conversion.saving import save_booster

PAGE = Path(__file__).resolve().parents[3] / "docs" / "estimators.md"

HEAD = """# Estimators

What `format=auto` makes of {count} models, each trained on real data. Difference: the largest one of a
number on all gating rows, for labels that of the probabilities behind them where there are any. Speed-up:
how many times less time of the CPU the ONNX form takes for requests of 1 and of 64 rows than the native
model through MLflow's pyfunc, both read, computed and written by the scoring server's own code, measured in
turns in one thread. Made by `make docs-estimators`; a test fails when a model gets another form than the
table says.

| model | answer | form | difference | speed-up, 1 row | speed-up, 64 rows |
|---|---|---|---|---|---|
"""


def groups() -> list[tuple[str, Sequence[Case]]]:
    """All cases, by the flavor that they are logged with."""
    return [("sklearn", CASES), ("sklearn", PIPELINES), ("boosting", XGBOOST), ("boosting", LIGHTGBM)]


def save(case: Case, kind: str, folder: Path) -> Path:
    """Train and save a model."""
    inputs, answers = case.data()
    model = case.make().fit(inputs, answers)
    if kind == "boosting":
        with pytest.MonkeyPatch.context() as patch:
            return save_booster(model, inputs, folder, patch)
    mlflow.sklearn.save_model(
        model,
        str(folder),
        signature=infer_signature(inputs, getattr(model, case.method)(inputs[:5])),
        input_example=inputs[:20],
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn"],
        pyfunc_predict_fn=case.method,
    )
    return folder


def row(case: Case, kind: str) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as work:
        converted = Path(work) / "converted"
        converted.mkdir()
        folder = save(case, kind, Path(work) / "model")
        made = make_servable(folder, converted)
        cells = ["", "", ""]
        if made.parity is not None:
            difference = made.parity.extremes[0]
            cells = ["" if difference is None else f"{difference:.0e}", *speed_ups(case, folder, made)]
    return f"| {case.name} | {case.method} | {made.servable.kind} | {' | '.join(cells)} |"


def speed_ups(case: Case, folder: Path, made: Conversion) -> list[str]:
    """How many times faster the form is than the native model, for 1 row and for 64."""
    inputs, _ = case.data()
    places = {"native": (pyfunc_servable(folder), folder), "form": (made.servable, made.content)}
    calls = {name: open_in_process(*place, made.signature) for name, place in places.items()}
    rows = inputs[:64] if isinstance(inputs, pd.DataFrame) else {"": inputs[:64]}
    # The work of the calling thread: what else runs on the machine would count against the slower one.
    found = measure(calls, rows, clock=time.thread_time)
    return [f"{found['native'].us[batch] / found['form'].us[batch]:.0f}x" for batch in BATCHES]


def listed(text: str) -> list[tuple[str, str, str]]:
    """Model, answer and form of each line of the page."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    return [(cells[0], cells[1], cells[2]) for cells in lines[1:]]


def main() -> int:
    """Write the page."""
    warnings.simplefilter("ignore")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    lines = []
    for kind, cases in groups():
        for case in cases:
            lines.append(row(case, kind))
            sys.stderr.write(lines[-1] + "\n")
    PAGE.write_text(HEAD.format(count=len(lines)) + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
