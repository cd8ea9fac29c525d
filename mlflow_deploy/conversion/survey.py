"""All forms of one model: which it can have, why not the others, and what each is worth on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy.conversion.attempt import Case, Made, Rejection, attempts
from mlflow_deploy.conversion.choose import FORMS, load_if_possible, pyfunc_servable, silent
from mlflow_deploy.conversion.latency import Latency, Opener
from mlflow_deploy.conversion.native import read_meta, signature_document
from mlflow_deploy.conversion.race import race
from mlflow_deploy.conversion.report import Tolerance
from mlflow_deploy.conversion.validation import Validation
from mlflow_deploy.errors import UnsupportedConversion


@dataclass(frozen=True)
class FormReport:
    """What one form is worth for one model.

    Attributes:
        format: the form, in the words of `-C format=`.
        ok: the form answers like the native model.
        reason: why it does not, or cannot be made; for a form that does, what was found.
        max_abs_diff: largest difference of a number on gating rows; None for labels or without comparison.
        label_agreement: smallest share of rows with the same label; None for numbers or without comparison.
        latency: measured on this machine; None when the form is not ok or could not be measured.
        bytes: size of the form's files; None when there are none.
    """

    format: str
    ok: bool
    reason: str
    max_abs_diff: float | None = None
    label_agreement: float | None = None
    latency: Latency | None = None
    bytes: int | None = None


def survey(
    model_dir: Path,
    work: Path,
    *,
    opener: Opener,
    validation: Validation | None = None,
    tolerance: Tolerance | None = None,
    progress: Callable[[str], None] = silent,
) -> list[FormReport]:
    """Try every form of a model, those that are made on request only included, and measure the good ones.

    Args:
        model_dir: the folder that holds the MLmodel file; it is never changed.
        work: an existing folder for the files that are made.
        opener: opens a servable in the back end that serves it.
        validation: rows to compare on besides the input example and generated edge rows.
        tolerance: how far numbers may differ; by default what 32-bit floats need.
        progress: receives one line per step.

    Returns:
        One report per form, in the order of `-C format=`; pyfunc, the native model itself, is last.

    Raises:
        ModelCorrupt: the folder is not a readable MLflow model.
        UnsupportedConversion: the model cannot be loaded here.
    """
    meta = read_meta(model_dir)
    native, why = load_if_possible(model_dir, meta, progress)
    if native is None:
        raise UnsupportedConversion("The model", "any other form", why, "Install what the model needs")
    case = Case(native, work, validation, tolerance, progress)
    passed: dict[str, Made] = {}
    reports: dict[str, FormReport] = {}
    for form in FORMS:
        if form not in ("auto", "pyfunc"):
            found, rejected, _ = attempts(case, form)
            passed |= found
            reports |= {name: _rejected(name, rejection) for name, rejection in rejected.items()}
    places = {form: (made.servable, made.content) for form, made in passed.items()}
    places["pyfunc"] = (pyfunc_servable(model_dir), model_dir)
    latencies = race(case, places, signature_document(meta), opener)
    for form, made in passed.items():
        difference, agreement = made.parity.extremes
        finding, size = made.parity.finding, _bytes(made.content)
        reports[form] = FormReport(form, True, finding, difference, agreement, latencies.get(form), size)
    native_size = _bytes(model_dir)
    reports["pyfunc"] = FormReport(
        "pyfunc", True, "the native model", 0.0, None, latencies.get("pyfunc"), native_size
    )
    return [reports[form] for form in FORMS if form != "auto"]


def _rejected(form: str, rejection: Rejection) -> FormReport:
    difference, agreement = rejection.parity.extremes if rejection.parity else (None, None)
    return FormReport(form, False, rejection.why, difference, agreement)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
