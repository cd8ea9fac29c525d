"""The drift report: per column what was measured, what it means, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

State: TypeAlias = Literal[
    "ok", "drifted", "not enough data", "vanished", "changed type", "new column", "not compared"
]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One test of one column.

    Attributes:
        name: `distribution` (over all bins), `missing`, `new values` (no category of the reference) or `out of
            range` (beyond its smallest and largest value).
        effect: how large the change is: Jensen-Shannon distance for the distribution, else the difference of
            two shares.
        threshold: the smallest effect that counts.
        p_value: chance of such a difference without drift.
        p_adjusted: the same, adjusted for all tests of this report.
        reason: the change in words.
    """

    name: str
    effect: float
    threshold: float
    p_value: float
    p_adjusted: float
    drifted: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Shares of the rows with a value, per bin, for pictures.

    Attributes:
        names: of the bins.
        before: shares in the reference.
        after: shares in the window.
    """

    names: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class MultivariateDrift:
    """Whether the columns still move together as they did.

    Attributes:
        effect: change of the error with which a few principal components reconstruct a row, in standard
            deviations of that error; None when it was not compared.
        threshold: the smallest effect that counts.
        p_value: against reference rows, adjusted for all tests of the report; None without a test.
        rows: rows of the window's sample.
    """

    drifted: bool
    reason: str
    effect: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class ColumnDrift:
    """The verdict on one column.

    Attributes:
        state: what was found; `vanished` and `changed type` count as drifted, `new column` does not.
        statistic: Jensen-Shannon distance to the reference in [0, 1], missing values being a bin; None when
            the column cannot be compared.
        p_value: of the test that decided, adjusted for all tests of the report; None without a test.
        reason: why this is the verdict, for a person.
        missing: share of rows without a value in the window; None when the column is not there.
        missing_reference: the same in the reference; None for a new column.
        checks: every test of the column.
        histogram: reference and window side by side; None when the column cannot be compared.
    """

    name: str
    state: State
    reason: str
    drifted: bool = False
    statistic: float | None = None
    p_value: float | None = None
    missing: float | None = None
    missing_reference: float | None = None
    checks: tuple[Check, ...] = ()
    histogram: Histogram | None = None


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """How a window differs from the reference.

    Attributes:
        drifted: at least one column drifted, or the columns do not move together as they did.
        enough_data: window and reference both have `min_rows` rows; otherwise no column is judged.
        reason: the whole verdict in one sentence.
        columns: by name: the reference's columns, `prediction` when it was given, then new columns.
        rows: rows of the window.
        rows_reference: rows of the reference.
        false_alarm_rate: chance that a window without drift is reported as drifted, at most.
        multivariate: how the columns move together; None when the profile does not know.
    """

    drifted: bool
    enough_data: bool
    reason: str
    columns: Mapping[str, ColumnDrift]
    rows: int
    rows_reference: int
    false_alarm_rate: float
    min_rows: int
    multivariate: MultivariateDrift | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        values = asdict(self)
        values["columns"] = {name: asdict(column) for name, column in self.columns.items()}
        return values

    def to_html(self, *, title: str = "Drift report", note: str = "") -> str:
        """One page for a person: what moved, how sure that is, and each column before and after.

        Args:
            title: of the page.
            note: a line below it, such as the deployment and the time of the window.
        """
        from mlflow_deploy.monitoring.page import page

        return page(self, title, note)

    def to_frame(self) -> pd.DataFrame:
        """One row per column, those that moved most first; None is missing."""
        import pandas as pd

        shown = ("state", "drifted", "statistic", "p_value", "missing", "missing_reference", "reason")
        frame = pd.DataFrame(
            [{"column": column.name, **{key: getattr(column, key) for key in shown}}
             for column in self.columns.values()],
            columns=["column", *shown],
        )  # fmt: skip
        for key in ("statistic", "p_value", "missing", "missing_reference"):
            frame[key] = frame[key].astype("float64")
        order = ["drifted", "statistic"]
        return frame.sort_values(order, ascending=False, kind="stable", ignore_index=True)
