"""The choice of a servable: try the faster forms, believe only parity, fall back to pyfunc and say why."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from mlflow_deploy.bundle import SERVABLE, Feed, Servable
from mlflow_deploy.conversion.validation import Validation
from mlflow_deploy.errors import ConfigError, MissingExtra, ParityFailed, UnsupportedConversion, nearest

if TYPE_CHECKING:
    from mlflow.models import Model

    from mlflow_deploy.conversion.base import Candidate, ConverterEntry
    from mlflow_deploy.conversion.native import NativeModel
    from mlflow_deploy.conversion.parity import Reference
    from mlflow_deploy.conversion.report import ParityReport, Tolerance


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
    """

    content: Path
    servable: Servable
    parity: ParityReport | None = None
    fallback: str = ""
    rejected: dict[str, str] = field(default_factory=dict)
    example: dict[str, Any] | None = None
    signature: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Evidence:
    """Native answers to compare with, and what to say about how they came to be.

    Attributes:
        references: answers of the method that is served.
        behind: for a classifier that answers with labels, the probabilities behind them.
        missing: columns in which the native model refuses missing values.
        infinite: columns in which it refuses Infinity.
    """

    references: Sequence[Reference]
    behind: Sequence[Reference]
    missing: frozenset[Any]
    infinite: frozenset[Any]
    notes: tuple[str, ...]


def silent(message: str) -> None:
    """Report no progress."""


def make_servable(
    model_dir: Path,
    work: Path,
    *,
    format: str = "auto",
    validation: Validation | None = None,
    tolerance: Tolerance | None = None,
    progress: Callable[[str], None] = silent,
) -> Conversion:
    """Bring an MLflow model into the fastest form that answers like the native model.

    Args:
        model_dir: the folder that holds the MLmodel file; it is never changed.
        work: an existing folder for the files that are made.
        format: `auto` takes the fastest form that passes parity, pyfunc last; `onnx` insists on ONNX;
            `pyfunc` keeps the native model.
        validation: rows to compare on besides the input example and generated edge rows.
        tolerance: how far numbers may differ; by default what 32-bit floats need.
        progress: receives one line per step.

    Raises:
        ModelCorrupt: the folder is not a readable MLflow model.
        UnsupportedConversion: `format` names a form that this model cannot have.
        ParityFailed: `format` names a form in which this model answers differently.
        MissingExtra: `format` names a form whose converter needs a library that is not installed.
        ConfigError: there is no such format.
    """
    from mlflow_deploy.conversion.base import CONVERTERS, converters_for
    from mlflow_deploy.conversion.native import example_document, load_native, read_meta, signature_document

    forms = sorted({"auto", "pyfunc"} | {entry.form for entry in CONVERTERS})
    if format not in forms:
        raise ConfigError(
            f"There is no format {format!r}",
            why=nearest(format, forms),
            hint=f"Known formats: {', '.join(forms)}",
        )
    meta = read_meta(model_dir)
    wanted = None if format == "auto" else format
    loader = str(meta.flavors["python_function"].get("loader_module", ""))
    progress(f"loading the model ({loader})")
    try:
        native = load_native(model_dir, meta)
    except ImportError as error:
        why = f"the model needs {error.name or error}, which is not installed here"
        if wanted not in (None, "pyfunc"):
            raise UnsupportedConversion("The model", format, why) from error
        return _pyfunc(model_dir, meta, fallback="" if wanted == "pyfunc" else why)
    notes: tuple[str, ...] = ()
    example = None
    try:
        example = example_document(native)
    except Exception as error:  # noqa: BLE001 - the model is the user's code; its own example is refused, which is noted
        notes = (f"the model refuses its own input example: {_line(error)}",)
    if wanted == "pyfunc":
        return replace(_pyfunc(model_dir, meta), example=example, notes=notes)
    entries = converters_for(loader, wanted)
    rejected: dict[str, str] = {}
    if not entries:
        form = wanted or "a faster form"
        rejected[wanted or "onnx"] = f"there is no conversion from {loader or 'this flavor'} to {form}"
    for entry in entries:
        outcome = _try(entry, native, work, validation, tolerance, progress)
        if isinstance(outcome, Conversion):
            signature = signature_document(meta)
            notes = (*notes, *outcome.notes)
            return replace(outcome, example=example, signature=signature, rejected=rejected, notes=notes)
        rejected[entry.form] = outcome.why
        notes = tuple(dict.fromkeys((*notes, *outcome.notes)))
        if wanted is not None:
            raise outcome.error from outcome.cause
    if wanted is not None:
        raise UnsupportedConversion("The model", wanted, rejected[wanted])
    why = "; ".join(f"{form}: {reason}" for form, reason in rejected.items())
    progress(f"pyfunc: {why}")
    return replace(_pyfunc(model_dir, meta, fallback=why), example=example, rejected=rejected, notes=notes)


@dataclass(frozen=True)
class _Rejection:
    """Why a form was not taken, and the error for a user who insisted on it."""

    why: str
    error: ParityFailed | UnsupportedConversion | MissingExtra
    cause: Exception | None = None
    notes: tuple[str, ...] = ()


def _try(
    entry: ConverterEntry,
    native: NativeModel,
    work: Path,
    validation: Validation | None,
    tolerance: Tolerance | None,
    progress: Callable[[str], None],
) -> Conversion | _Rejection:
    """Build and check the candidates of one converter; the first that passes is taken."""
    from mlflow_deploy.conversion.base import load_converter, needs

    try:
        converter = load_converter(entry)
    except MissingExtra as error:
        return _Rejection(error.text, error)
    lacking = sorted(item.value for item in needs(native) - converter.CAPABILITIES)
    why = f"its converter cannot take {' or '.join(lacking)} inputs" if lacking else converter.refuse(native)
    if why:
        return _Rejection(why, UnsupportedConversion("The model", entry.form, why))
    native = replace(native, hints=converter.hints(native))
    progress("asking the native model for reference answers")
    evidence = _evidence(native, validation)
    answer = next((item.answers for item in evidence.references if len(item.answers)), None)
    if answer is None:
        why = "; ".join(("the native model answers none of the rows to compare on", *evidence.notes))
        return _Rejection(why, UnsupportedConversion("The model", entry.form, why), notes=evidence.notes)
    reasons: dict[str, list[str]] = {}
    differs = False
    for candidate in converter.candidates(native, answer):
        progress(f"converting to {entry.form} ({candidate.label})")
        outcome = _check(entry, candidate, native, work, evidence, tolerance)
        if isinstance(outcome, Conversion):
            assert outcome.parity is not None
            progress(outcome.parity.summary)
            return outcome
        progress(f"{entry.form} ({candidate.label}): {outcome.why}")
        reasons.setdefault(outcome.why, []).append(candidate.label)
        differs = differs or isinstance(outcome.error, ParityFailed)
    why = "; ".join(f"{' and '.join(labels)}: {reason}" for reason, labels in reasons.items())
    kind = ParityFailed(entry.form, why) if differs else UnsupportedConversion("The model", entry.form, why)
    return _Rejection(why, kind, notes=evidence.notes)


def _check(
    entry: ConverterEntry,
    candidate: Candidate,
    native: NativeModel,
    work: Path,
    evidence: _Evidence,
    tolerance: Tolerance | None,
) -> Conversion | _Rejection:
    """Build one candidate and compare it with the native model."""
    content = Path(tempfile.mkdtemp(dir=work, prefix=f"{SERVABLE}-"))
    aside = Path(tempfile.mkdtemp(dir=work, prefix="probe-"))
    try:
        servable = candidate.build(content)
        report = _compare(entry, candidate, content, servable, native, evidence.references, tolerance)
        if candidate.probe is not None and evidence.behind:
            behind = native.probabilities()
            assert behind is not None
            probe = candidate.probe(aside)
            second = _compare(entry, candidate, aside, probe, behind, evidence.behind, tolerance)
            report = report.joined(second, "probabilities behind the labels")
    except Exception as error:  # noqa: BLE001 - third-party converters raise anything; the text becomes the stated reason
        shutil.rmtree(content)
        why = f"cannot be made: {_line(error)}"
        return _Rejection(why, UnsupportedConversion("The model", entry.form, why), error)
    finally:
        shutil.rmtree(aside)
    if not report.passed:
        shutil.rmtree(content)
        return _Rejection(report.finding, ParityFailed(entry.form, report.finding))
    feeds = tuple(_with_limits(feed, evidence) for feed in servable.feeds)
    servable = structs.replace(servable, feeds=feeds)
    report = replace(report, notes=evidence.notes)
    return Conversion(content=content, servable=servable, parity=report, notes=evidence.notes)


def _with_limits(feed: Feed, evidence: _Evidence) -> Feed:
    """A graph answers where the native model refuses a value, so the server has to refuse it."""
    if _all_in(feed, evidence.missing):
        return structs.replace(feed, accepts="finite")
    return structs.replace(feed, accepts="nan" if _all_in(feed, evidence.infinite) else "all")


def _all_in(feed: Feed, columns: frozenset[Any]) -> bool:
    """Whether all columns of a feed are among these; a tensor's columns are all that there are."""
    return (
        bool(columns) if feed.tensor is not None else bool(feed.columns) and columns.issuperset(feed.columns)
    )


def _compare(
    entry: ConverterEntry,
    candidate: Candidate,
    content: Path,
    servable: Servable,
    native: NativeModel,
    references: Sequence[Reference],
    tolerance: Tolerance | None,
) -> ParityReport:
    from mlflow_deploy.conversion.parity import compare
    from mlflow_deploy.conversion.report import FP32
    from mlflow_deploy.conversion.runners import open_runner

    return compare(
        open_runner(servable, content),
        references,
        format=entry.form,
        variant=candidate.label,
        tolerance=tolerance or FP32,
        probabilities=native.predict_fn == "predict_proba",
    )


def _evidence(native: NativeModel, validation: Validation | None) -> _Evidence:
    from mlflow_deploy.conversion.edges import edge_datasets, invent, refuses
    from mlflow_deploy.conversion.native import example_rows
    from mlflow_deploy.conversion.parity import Dataset, refer

    datasets: list[Dataset] = []
    notes: list[str] = []
    try:
        rows = example_rows(native)
        if rows is not None and len(rows):
            datasets.append(Dataset("input example", rows))
    except Exception as error:  # noqa: BLE001 - an example in any form can fail in any way; it ends up in the report
        notes.append(f"the input example could not be used: {_line(error)}")
    if validation is not None:
        if validation.problem:
            notes.append(f"validation rows could not be used: {validation.problem}")
        else:
            try:
                rows = native.conform(validation.frame)
                truth = None if validation.label is None else validation.frame[validation.label].to_numpy()
                datasets.append(Dataset("validation rows", rows, truth=truth))
            except (ValueError, TypeError, KeyError) as error:
                notes.append(f"validation rows could not be used: {_line(error)}")
    references = [refer(native, dataset) for dataset in datasets]
    base = max((item.dataset.rows for item in references), key=len, default=None)
    if base is None or not len(base):
        base = invent(native)
        datasets = [Dataset("rows invented from the signature", base)]
        notes.append("the model has no usable input example, so rows were invented from its signature")
        references = [refer(native, dataset) for dataset in datasets]
    references += [refer(native, dataset) for dataset in edge_datasets(native, base)]
    probabilities = native.probabilities()
    behind = [refer(probabilities, item.dataset) for item in references] if probabilities else []
    answered = any(len(item.answers) for item in behind)
    missing, infinite = refuses(native, base, math.nan), refuses(native, base, math.inf)
    return _Evidence(references, behind if answered else [], missing, infinite, tuple(notes))


def _pyfunc(model_dir: Path, meta: Model, fallback: str = "") -> Conversion:
    from mlflow_deploy.conversion.native import signature_document

    file = model_dir / "requirements.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    servable = Servable(
        kind="pyfunc",
        path=SERVABLE,
        requirements=tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")),
    )
    return Conversion(
        content=model_dir, servable=servable, fallback=fallback, signature=signature_document(meta)
    )


def _line(error: BaseException) -> str:
    """An exception on one line of bounded length, its class first."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
