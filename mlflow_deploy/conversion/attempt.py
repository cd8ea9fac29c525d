"""One form of one model: its candidates are built, compared with the native model, and taken or rejected."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from mlflow_deploy.bundle import SERVABLE, Servable
from mlflow_deploy.conversion import limits, precision
from mlflow_deploy.conversion.base import Candidate, ConverterEntry, converters_for, load_converter, needs
from mlflow_deploy.conversion.evidence import Evidence, gather, line
from mlflow_deploy.conversion.native import NativeModel
from mlflow_deploy.conversion.parity import Reference, are_probabilities, compare, numbered_classes
from mlflow_deploy.conversion.report import TOLERANCES, ParityReport, Tolerance
from mlflow_deploy.conversion.runners import open_runner
from mlflow_deploy.conversion.validation import Validation
from mlflow_deploy.errors import ConversionError, MissingExtra, ParityFailed, UnsupportedConversion
from mlflow_deploy.settings import GPU_FORMS

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows


@dataclass(frozen=True)
class Made:
    """A servable that passed: the folder of its files, its description and the proof."""

    content: Path
    servable: Servable
    parity: ParityReport


@dataclass(frozen=True)
class Rejection:
    """Why a form was not taken.

    Attributes:
        why: the reason for a person.
        error: the error for a user who insisted on the form.
        parity: the comparison that failed, None when there was none.
    """

    why: str
    error: ConversionError | MissingExtra
    cause: Exception | None = None
    notes: tuple[str, ...] = ()
    parity: ParityReport | None = None


@dataclass
class Case:
    """What all attempts on one model share.

    Attributes:
        native: the model.
        work: a folder for files.
        validation: rows to compare on besides example and edge rows.
        tolerance: how far numbers may differ; None takes what the candidate's precision needs.
        progress: receives one line per step.
        precision: fp32, fp16, int8, or auto for the fastest of them.
        device: cpu or gpu; for a GPU, forms that compute on CPUs only are not tried unless they are asked for.
    """

    native: NativeModel
    work: Path
    validation: Validation | None
    tolerance: Tolerance | None
    progress: Callable[[str], None]
    precision: str = "fp32"
    device: str = "cpu"
    _gathered: dict[str, Evidence] = field(default_factory=dict)

    @property
    def rows(self) -> Rows | None:
        """Rows that the native model answers, to measure with; None as long as there is no evidence."""
        return next((found.rows for found in self._gathered.values() if found.rows is not None), None)

    def evidence(self, native: NativeModel) -> Evidence:
        """The native answers; converters that know the same of the model share them."""
        key = repr(sorted(native.hints.items(), key=repr))
        if key not in self._gathered:
            self.progress("asking the native model for reference answers")
            self._gathered[key] = gather(native, self.validation)
        return self._gathered[key]


def attempts(
    case: Case, wanted: str | None, *, first: bool = False
) -> tuple[dict[str, Made], dict[str, Rejection], tuple[str, ...]]:
    """All forms that are allowed: those that passed, those that did not, and notes on the comparison.

    Args:
        wanted: the only form to try; None for those that `format=auto` may take.
        first: stop at the first that passes.
    """
    loader = case.native.loader
    entries = converters_for(loader, wanted)
    if not entries:
        why = f"there is no conversion from {loader or 'this flavor'} to {wanted or 'a faster form'}"
        error = UnsupportedConversion("The model", wanted or "a faster form", why)
        return {}, {wanted or "onnx": Rejection(why, error)}, ()
    passed: dict[str, Made] = {}
    rejected: dict[str, Rejection] = {}
    notes: tuple[str, ...] = ()
    for entry in entries:
        if wanted is None and case.device == "gpu" and entry.form not in GPU_FORMS:
            why = "it computes on CPUs only"
            rejected[entry.form] = Rejection(why, UnsupportedConversion("The model", entry.form, why))
            continue
        outcome = attempt(case, entry)
        if isinstance(outcome, Made):
            passed[entry.form] = outcome
            notes += outcome.parity.notes
            if first:
                break
        else:
            rejected[entry.form] = outcome
            notes += outcome.notes
    return passed, rejected, notes


def attempt(case: Case, entry: ConverterEntry) -> Made | Rejection:
    """Build and check the candidates of one converter; the first that passes is taken."""
    try:
        converter = load_converter(entry)
    except MissingExtra as error:
        return Rejection(error.text, error)
    lacking = sorted(item.value for item in needs(case.native) - converter.CAPABILITIES)
    why = (
        f"its converter cannot take {' or '.join(lacking)} inputs"
        if lacking
        else converter.refuse(case.native)
    )
    if why:
        return Rejection(why, UnsupportedConversion("The model", entry.form, why))
    native = replace(case.native, hints=converter.hints(case.native))
    evidence = case.evidence(native)
    answer = evidence.answer
    if answer is None:
        why = "; ".join(("the native model answers none of the rows to compare on", *evidence.notes))
        return Rejection(why, UnsupportedConversion("The model", entry.form, why), notes=evidence.notes)
    rejections: dict[str, list[str]] = {}
    failed: ParityReport | None = None
    check = _Check(case, entry, native, evidence)
    for candidate in converter.candidates(native, answer):
        case.progress(f"converting to {entry.form} ({candidate.label})")
        outcome = check.run(candidate)
        if isinstance(outcome, Made):
            case.progress(outcome.parity.summary)
            return outcome if case.precision == "fp32" else _lowered(check, outcome)
        case.progress(f"{entry.form} ({candidate.label}): {outcome.why}")
        rejections.setdefault(outcome.why, []).append(candidate.label)
        failed = failed or outcome.parity
    why = "; ".join(f"{' and '.join(labels)}: {reason}" for reason, labels in rejections.items())
    kind = ParityFailed(entry.form, why) if failed else UnsupportedConversion("The model", entry.form, why)
    return Rejection(why, kind, notes=evidence.notes, parity=failed)


def _lowered(check: _Check, made: Made) -> Made | Rejection:
    """The servable in the precision that is wanted: of the candidates that pass the fastest."""
    case, form = check.case, check.entry.form
    at_once = check.native.rows_at_once
    feeds, note = precision.calibration(check.evidence, made.servable, at_once)
    answer = check.evidence.answer
    assert answer is not None
    lowering = precision.Lowering(check.native, made.servable, made.content, feeds, answer)
    found = [made] if case.precision == "auto" else []
    reasons: list[str] = []
    failed: ParityReport | None = None
    for wanted in precision.wanted_precisions(case.precision):
        why = precision.refuse(lowering, wanted)
        if why:
            reasons.append(why)
            continue
        narrow = replace(check, evidence=precision.gating(check.evidence, wanted))
        for candidate in precision.candidates(lowering, wanted):
            case.progress(f"converting to {form} ({candidate.label})")
            outcome = narrow.run(candidate)
            if isinstance(outcome, Made):
                found.append(outcome)
                continue
            reasons.append(f"{candidate.label}: {outcome.why}")
            failed = failed or outcome.parity
    if not found:
        why = "; ".join(reasons)
        kind = (
            ParityFailed(form, why)
            if failed
            else UnsupportedConversion("The model", f"{form} with {case.precision}", why)
        )
        return Rejection(why, kind, notes=check.evidence.notes, parity=failed)
    best, measured = 0, ""
    if len(found) > 1 and check.evidence.rows is not None:
        places = [(item.servable, item.content) for item in found]
        labels = [item.parity.variant for item in found]
        best, measured = precision.fastest(places, labels, check.evidence.rows, at_once)
    taken = found[best]
    for item in (made, *found):
        if item.content != taken.content and item.content.exists():
            shutil.rmtree(item.content)
    used = taken.servable.precision == "int8"
    extra = [note] if note and used else []
    notes = (*taken.parity.notes, *extra, *([measured] if measured else []), *reasons)
    case.progress(taken.parity.summary)
    return replace(taken, parity=replace(taken.parity, notes=notes))


@dataclass(frozen=True)
class _Check:
    """Builds candidates of one form and compares them with the native model."""

    case: Case
    entry: ConverterEntry
    native: NativeModel
    evidence: Evidence

    def run(self, candidate: Candidate) -> Made | Rejection:
        work, evidence = self.case.work, self.evidence
        content = Path(tempfile.mkdtemp(dir=work, prefix=f"{SERVABLE}-"))
        aside = Path(tempfile.mkdtemp(dir=work, prefix="probe-"))
        try:
            servable = candidate.build(content)
            report = self._compare(candidate, content, servable, self.native, evidence.references)
            if candidate.probe is not None and evidence.behind:
                behind = self.native.probabilities()
                assert behind is not None
                probe = candidate.probe(aside)
                second = self._compare(candidate, aside, probe, behind, evidence.behind)
                report = report.joined(second, "probabilities behind the labels")
        except Exception as error:  # noqa: BLE001 - third-party converters raise anything; the text becomes the reason
            shutil.rmtree(content)
            if isinstance(error, MissingExtra):
                return Rejection(error.text, error)
            why = f"cannot be made: {line(error)}"
            return Rejection(why, UnsupportedConversion("The model", self.entry.form, why), error)
        finally:
            shutil.rmtree(aside)
        limited = any(feed.accepts == "finite" for feed in servable.feeds)
        report = replace(report, notes=(*evidence.notes, limits.NOTE) if limited else evidence.notes)
        if not report.passed:
            shutil.rmtree(content)
            return Rejection(report.finding, ParityFailed(self.entry.form, report.finding), parity=report)
        servable = structs.replace(servable, feeds=tuple(evidence.limited(feed) for feed in servable.feeds))
        return Made(content=content, servable=servable, parity=report)

    def _compare(
        self,
        candidate: Candidate,
        content: Path,
        servable: Servable,
        native: NativeModel,
        references: Sequence[Reference],
    ) -> ParityReport:
        return compare(
            open_runner(servable, content),
            [limits.within(reference, servable.feeds) for reference in references],
            format=self.entry.form,
            variant=candidate.label,
            tolerance=self.case.tolerance or TOLERANCES[servable.precision],
            probabilities=native.predict_fn == "predict_proba" or are_probabilities(references),
            classes=native.class_values
            if native.predict_fn == "predict_proba"
            else numbered_classes(references),
        )
