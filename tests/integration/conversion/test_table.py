"""Every scikit-learn model of the table becomes correct ONNX or stays pyfunc with a stated reason."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from mlflow_deploy.bundle import Servable
from mlflow_deploy.conversion import make_servable
from mlflow_deploy.conversion.feeds import build_feeds, read_answer
from tests.integration.conversion import table
from tests.integration.conversion.cases import CASES, Case
from tests.integration.conversion.conftest import SaveModel


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_model_is_correct_onnx_or_pyfunc_with_a_reason(case: Case, save: SaveModel, work: Path) -> None:
    inputs, answers = case.data()
    model = case.make().fit(inputs, answers)
    folder = save(model, inputs, case.method)

    conversion = make_servable(folder, work)

    assert conversion.servable.kind == case.form, conversion.fallback
    assert conversion.example is not None
    if case.form == "pyfunc":
        assert conversion.content == folder
        assert conversion.parity is None
        assert case.why in conversion.fallback
        assert conversion.rejected
        return
    assert conversion.parity is not None
    assert conversion.parity.passed
    assert not conversion.fallback
    # The check of the check: all training rows through a session of our own, against the estimator itself.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*feature names.*")
        native = getattr(model, case.method)(inputs)
    served = serve(conversion.content, conversion.servable, inputs)
    assert served.shape == native.shape
    if native.dtype.kind == "f":
        scale = float(np.median(np.abs(native)))
        np.testing.assert_allclose(served, native, rtol=1e-4, atol=1e-5 * max(scale, 1.0))
    else:
        assert served.dtype == (object if native.dtype.kind in "OU" else native.dtype)
        assert (served == native).all()


def serve(content: Path, servable: Servable, inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(content / Path(servable.path).name)
    rows = inputs if isinstance(inputs, pd.DataFrame) else {"": inputs}
    outputs = session.run([servable.outputs[0].name], build_feeds(servable.feeds, rows))
    return read_answer(servable, outputs).array


def test_the_documented_table_is_current() -> None:
    expected = [(case.name, case.method, case.form) for _, cases in table.groups() for case in cases]
    assert table.listed(table.PAGE.read_text(encoding="utf-8")) == expected, "Run `make docs-estimators`"


def test_the_table_is_wide() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(case.form == "onnx" for case in CASES) >= 50
