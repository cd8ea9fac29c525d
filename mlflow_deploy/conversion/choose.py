"""The choice of a servable: try the faster forms, believe only parity, fall back to pyfunc and say why."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from msgspec import structs

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.config import Format
from mlflow_deploy.conversion.existing import existing_form
from mlflow_deploy.conversion.validation import Validation
from mlflow_deploy.errors import ConfigError, ParityFailed, UnsupportedConversion, nearest

if TYPE_CHECKING:
    from mlflow.models import Model

    from mlflow_deploy.conversion.attempt import Made, Rejection
    from mlflow_deploy.conversion.latency import Latency, Opener
    from mlflow_deploy.conversion.native import NativeModel
    from mlflow_deploy.conversion.report import ParityReport, Tolerance

FORMS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True)
class Conversion:
    """A servable with its evidence.

    Attributes:
        content: folder whose files become the bundle's `servable/`; for pyfunc the model folder itself.
        servable: what a server runs.
        parity: comparison with the native model; None for pyfunc, which is the native model.
        fallback: why the servable is pyfunc although a faster form was allowed; empty otherwise.
        rejected: the reason for each form that was tried and not taken.
        example: `request`, a body for /invocations, and `predictions`, the native answer as MLflow's scoring
            server gives it; None when the model has no usable input example.
        signature: `inputs`, `outputs` and `params` of MLflow's signature as JSON; None without signature.
        notes: what the user should know and no other field says.
        latencies: what was measured to choose between forms that passed; empty when there was one.
    """

    content: Path
    servable: Servable
    parity: ParityReport | None = None
    fallback: str = ""
    rejected: dict[str, str] = field(default_factory=dict)
    example: dict[str, Any] | None = None
    signature: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    latencies: dict[str, Latency] = field(default_factory=dict)


def silent(message: str) -> None:
    """Report no progress."""


def make_servable(
    model_dir: Path,
    work: Path,
    *,
    format: str = "auto",
    precision: str = "fp32",
    device: str = "cpu",
    validation: Validation | None = None,
    tolerance: Tolerance | None = None,
    progress: Callable[[str], None] = silent,
    opener: Opener | None = None,
    measure_all: bool = False,
) -> Conversion:
    """Bring an MLflow model into the fastest form that answers like the native model.

    Args:
        model_dir: the folder that holds the MLmodel file; it is never changed.
        work: an existing folder for the files that are made.
        format: `auto` takes the fastest form that passes parity, pyfunc last; another form insists on it;
            `pyfunc` keeps the native model. A form that the folder holds with its proof is taken as it is.
        precision: what the servable computes with: `fp32`, `fp16`, `int8`, or `auto` for the fastest of them
            that passes parity. The ranges of int8 are measured on the validation rows.
        device: `gpu` when it will be served on one: `auto` then takes no form that computes on CPUs only.
        validation: rows to compare on besides the input example and generated edge rows.
        tolerance: how far answers may differ; by default what the precision needs.
        progress: receives one line per step.
        opener: opens a servable in the back end that serves it, to measure forms that pass; without it the
            first form of the table that passes is taken.
        measure_all: measure pyfunc too, and also where there is nothing to choose.

    Raises:
        ModelCorrupt: the folder is not a readable MLflow model.
        UnsupportedConversion: `format` names a form that this model cannot have, or `precision` int8 or fp16
            and no form can have it.
        ParityFailed: `format` or `precision` names one in which this model answers differently.
        MissingExtra: `format` names a form whose converter needs a library that is not installed.
        ConfigError: there is no such format or precision.
    """
    from mlflow_deploy.conversion.attempt import Case, attempts
    from mlflow_deploy.conversion.native import read_meta, signature_document
    from mlflow_deploy.conversion.precision import check_precision
    from mlflow_deploy.conversion.race import race

    check_format(format)
    check_precision(precision, format)
    meta = read_meta(model_dir)
    signature = signature_document(meta)
    wanted = None if format == "auto" else format
    existing, unused = existing_form(model_dir, meta, wanted, tolerance)
    if existing is not None and precision in ("fp32", "auto", existing.servable.precision):
        progress(f"using the {existing.servable.kind} form that the model holds")
        return existing
    native, why = load_if_possible(model_dir, meta, progress)
    if native is None:
        if wanted not in (None, "pyfunc"):
            raise UnsupportedConversion("The model", format, why)
        return _pyfunc(model_dir, signature, fallback="" if wanted == "pyfunc" else why)
    example, notes = _example(native)
    notes = (*unused, *notes)
    if wanted == "pyfunc":
        return _named(native, replace(_pyfunc(model_dir, signature), example=example, notes=notes))
    case = Case(native, work, validation, tolerance, progress, precision, device)
    passed, rejected, said = attempts(case, wanted, first=opener is None)
    if wanted is not None and rejected:
        rejection = rejected[wanted]
        raise rejection.error from rejection.cause
    notes = tuple(dict.fromkeys((*notes, *said)))
    reasons = {form: rejection.why for form, rejection in rejected.items()}
    if not passed and precision in ("int8", "fp16"):
        raise _no_precision(precision, rejected)
    if not passed:
        why = "; ".join(f"{form}: {reason}" for form, reason in reasons.items())
        progress(f"pyfunc: {why}")
        servable = _pyfunc(model_dir, signature, fallback=why)
        return _named(native, replace(servable, example=example, rejected=reasons, notes=notes))
    latencies: dict[str, Latency] = {}
    if opener is not None and (measure_all or len(passed) > 1):
        places = {form: (made.servable, made.content) for form, made in passed.items()}
        if measure_all:
            places["pyfunc"] = (pyfunc_servable(model_dir), model_dir)
        latencies = race(case, places, signature, opener)
    form = _choose(passed, latencies)
    for other in [name for name in passed if name != form]:
        shutil.rmtree(passed[other].content)
        reasons[other] = f"it answers like the native model, but {form} is faster"
    made = passed[form]
    found = Conversion(
        content=made.content,
        servable=made.servable,
        parity=made.parity,
        rejected=reasons,
        example=example,
        signature=signature,
        notes=notes,
        latencies=latencies,
    )
    return _named(native, found)


def _named(native: NativeModel, found: Conversion) -> Conversion:
    """The same with the names of the classes, by which captured probabilities are called."""
    return replace(found, servable=structs.replace(found.servable, classes=native.classes))


def check_format(format: str) -> None:
    """Raise ConfigError for a form that does not exist."""
    if format not in FORMS:
        raise ConfigError(
            f"There is no format {format!r}",
            why=nearest(format, FORMS),
            hint=f"Known formats: {', '.join(FORMS)}",
        )


def load_if_possible(
    model_dir: Path, meta: Model, progress: Callable[[str], None]
) -> tuple[NativeModel | None, str]:
    """The loaded model, or None and why it cannot be loaded here."""
    from mlflow_deploy.conversion.native import load_native

    progress(f"loading the model ({meta.flavors['python_function'].get('loader_module', '')})")
    try:
        return load_native(model_dir, meta), ""
    except ImportError as error:
        return None, f"the model needs {error.name or error}, which is not installed here"


def _example(native: NativeModel) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The example with the native answer, and what there is to say about it."""
    from mlflow_deploy.conversion.evidence import line
    from mlflow_deploy.conversion.native import example_document

    try:
        return example_document(native), ()
    except Exception as error:  # noqa: BLE001 - the model is the user's code; its own example is refused, which is noted
        return None, (f"the model refuses its own input example: {line(error)}",)


def _no_precision(precision: str, rejected: Mapping[str, Rejection]) -> Exception:
    """The error for a user who insisted on a precision that no form can have."""
    why = "; ".join(f"{form}: {rejection.why}" for form, rejection in rejected.items())
    if any(isinstance(rejection.error, ParityFailed) for rejection in rejected.values()):
        return ParityFailed(precision, why)
    hint = "Use precision=fp32, or precision=auto to let it be chosen"
    return UnsupportedConversion("The model", precision, why, hint)


def _choose(passed: Mapping[str, Made], latencies: Mapping[str, Latency]) -> str:
    """The fastest of the forms that passed; without measurement the first of the table."""
    from mlflow_deploy.conversion.latency import fastest

    measured = {form: latencies[form] for form in passed if form in latencies}
    return fastest(measured) if measured else next(iter(passed))


def _pyfunc(model_dir: Path, signature: dict[str, Any] | None, fallback: str = "") -> Conversion:
    return Conversion(
        content=model_dir, servable=pyfunc_servable(model_dir), fallback=fallback, signature=signature
    )


def pyfunc_servable(model_dir: Path) -> Servable:
    """The native model as a servable."""
    file = model_dir / "requirements.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return Servable(
        kind="pyfunc",
        path=SERVABLE,
        requirements=tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")),
    )
