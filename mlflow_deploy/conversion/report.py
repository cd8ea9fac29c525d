"""The parity report: what was compared, how far the answers differ, and whether that is accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

WORST = 5
"""How many of the worst rows a report shows."""


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be from the native one: `atol * scale + rtol * |native|`.

    `scale` is the median size of the native numbers of the data set, or the largest number of the row when that
    is more, and 1 for probabilities, so that the absolute part means the same for a house price and for a
    concentration. Labels have no tolerance: a wrong
    label in production is wrong, however close the decision was.

    Attributes:
        rtol: relative part.
        atol: absolute part, in units of `scale`.
        beyond: share of rows whose numbers may be further off.
        agreement: share of rows whose label must be the same.
    """

    rtol: float = 1e-4
    atol: float = 1e-5
    beyond: float = 0.0
    agreement: float = 1.0


FP32 = Tolerance()
"""For servables that compute in 32-bit floats, which carry 7 digits: a sum of many terms keeps about 5."""

FP16 = Tolerance(rtol=5e-3, atol=2e-3, beyond=0.005, agreement=0.995)
"""For 16-bit floats, which carry 3 digits."""

INT8 = Tolerance(rtol=0.1, atol=0.1, beyond=0.02, agreement=0.98)
"""For 8-bit numbers, which have 256 values: one row in fifty may fall to the other side of a close decision."""

TOLERANCES: dict[str, Tolerance] = {"fp32": FP32, "fp16": FP16, "int8": INT8}
"""By the precision of the servable, when the user gives none."""


@dataclass(frozen=True)
class DatasetParity:
    """The comparison on one data set.

    Attributes:
        name: the data set.
        rows: compared rows.
        refused: rows left out because the native model itself refuses them.
        max_abs_diff: largest difference of a number; None when the answer is labels.
        mean_abs_diff: mean difference over all numbers; None when the answer is labels.
        beyond: share of rows with a number beyond tolerance or a wrong label.
        label_agreement: share of rows with the same label, for probabilities the same most probable class;
            None for other numbers.
        gating: a difference here rejects the servable.
        passed: no row is beyond.
        error: what the servable raised on rows that the native model answers.
        metric: name of the metric against the true answers: accuracy, or rmse for numbers; empty without truth.
        native_metric: its value for the native answers.
        served_metric: its value for the servable's answers.
        behind: it compares the probabilities behind labels, on rows that are already counted.
    """

    name: str
    rows: int
    refused: int
    max_abs_diff: float | None
    mean_abs_diff: float | None
    beyond: float
    label_agreement: float | None
    gating: bool
    passed: bool
    error: str = ""
    metric: str = ""
    native_metric: float | None = None
    served_metric: float | None = None
    behind: bool = False


@dataclass(frozen=True)
class WorstRow:
    """A row with a large difference: its data set, position, values and both answers, all as JSON."""

    dataset: str
    row: int
    values: dict[str, Any]
    native: Any
    served: Any
    abs_diff: float | None


@dataclass(frozen=True)
class ParityReport:
    """Whether a servable answers like its native model, with the evidence.

    Attributes:
        format: form of the servable.
        variant: the candidate: "float32", "float64"...
        tolerance: the tolerance that was applied.
        passed: no gating data set has a difference.
        datasets: one comparison per data set.
        worst: up to five rows with the largest differences.
        notes: what a reader of the report has to know, such as validation rows that could not be read.
    """

    format: str
    variant: str
    tolerance: Tolerance
    passed: bool
    datasets: tuple[DatasetParity, ...]
    worst: tuple[WorstRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[DatasetParity]:
        """The gating data sets with a difference."""
        return [item for item in self.datasets if item.gating and not item.passed]

    @property
    def extremes(self) -> tuple[float | None, float | None]:
        """The largest difference of a number and the smallest share of equal labels on gating rows."""
        gating = [item for item in self.datasets if item.gating]
        differences = [item.max_abs_diff for item in gating if item.max_abs_diff is not None]
        agreements = [item.label_agreement for item in gating if item.label_agreement is not None]
        return max(differences, default=None), min(agreements, default=None)

    @property
    def finding(self) -> str:
        """What was found, without the form's name."""
        if not self.passed:
            shown = [_failure(item) for item in self.failures]
            more = f", and on {len(shown) - 3} more data sets" if len(shown) > 3 else ""
            return "differs " + "; ".join(shown[:3]) + more
        rows = sum(item.rows for item in self.datasets if not item.behind)
        difference, labels = self.extremes
        agreement = "" if labels is None else f", label agreement {labels:.2%}"
        return f"equal on {rows} rows: max difference {difference or 0.0:.1e}{agreement}"

    @property
    def summary(self) -> str:
        """The report on one line."""
        return f"{self.format} ({self.variant}) {self.finding}"

    def joined(self, other: ParityReport, what: str) -> ParityReport:
        """This report with the data sets of another one, whose names get the addition `what`."""
        datasets = [replace(item, name=f"{item.name} ({what})", behind=True) for item in other.datasets]
        worst = [replace(item, dataset=f"{item.dataset} ({what})") for item in other.worst]
        return replace(
            self,
            passed=self.passed and other.passed,
            datasets=(*self.datasets, *datasets),
            worst=(*self.worst, *worst)[:WORST],
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON: numbers that JSON cannot hold become text."""
        document: dict[str, Any] = plain(asdict(self))
        return document | {"summary": self.summary}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ParityReport:
        """The report that `to_dict` wrote."""
        fields = {key: value for key, value in document.items() if key != "summary"}
        fields["tolerance"] = Tolerance(**fields["tolerance"])
        fields["datasets"] = tuple(DatasetParity(**_numbers(item)) for item in fields["datasets"])
        fields["worst"] = tuple(WorstRow(**_numbers(item)) for item in fields["worst"])
        fields["notes"] = tuple(fields["notes"])
        return cls(**fields)


def _failure(item: DatasetParity) -> str:
    if item.error:
        return f"on {item.name}: {item.error}"
    share = f"{item.beyond:.2%} of {item.rows} rows"
    if item.max_abs_diff is None:
        return f"on {item.name} {share} have another label"
    return f"on {item.name} {share} are beyond tolerance, max difference {item.max_abs_diff:.2g}"


# --- JSON --------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value as JSON; NaN and infinities become the text that Python's float() reads."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _numbers(document: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `_plain` for the fields that are numbers."""
    fields = dict(document)
    for key in ("max_abs_diff", "mean_abs_diff", "abs_diff", "native_metric", "served_metric"):
        if isinstance(fields.get(key), str):
            fields[key] = float(fields[key])
    return fields
