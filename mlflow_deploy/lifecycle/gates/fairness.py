"""Gate `fairness`: the version is about as good for every group as for all rows together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from mlflow_deploy.errors import DataError
from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed, skipped
from mlflow_deploy.lifecycle.gates.paired import LOWER_IS_BETTER

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from mlflow_deploy.lifecycle.gates.context import GateContext
    from mlflow_deploy.monitoring.answers import Answers
    from mlflow_deploy.monitoring.metrics import Metric

_BINS = 4


class FairnessSettings(GateSettings):
    """What the policy may say of gate `fairness`."""

    columns: tuple[str, ...] = Field(min_length=1)
    """Columns of the dataset whose values make the groups; they need not be inputs of the model. Numbers with
    many values are cut into quarters."""
    metric: str = "accuracy"
    """What is compared between the groups."""
    max_gap: float = Field(default=0.1, gt=0)
    """How much worse the metric of a group may be than that of all rows. A group fails when it is worse by more
    than that, its confidence interval included."""
    min_rows: int = Field(default=100, ge=2)
    """Rows below which a group is not judged; the evidence lists it."""
    max_groups: int = Field(default=50, ge=2)
    """Most values of a column."""
    dataset: str = "validation"
    """Rows of the policy to measure on."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the intervals, both ends together."""


class FairnessGate(Gate):
    """Measures the metric in every group."""

    name: ClassVar[str] = "fairness"
    settings_type: ClassVar[type[GateSettings]] = FairnessSettings
    settings: FairnessSettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        return context.judged(self.settings.dataset)

    def check(self, context: GateContext) -> Verdict:
        settings = self.settings
        answers = context.answers(context.bundle, settings.dataset)
        frame = context.rows(settings.dataset).frame
        whole = self._metric(answers)
        groups: list[dict[str, Any]] = []
        worse: list[str] = []
        for column in settings.columns:
            for value, index in self._slices(frame, column, answers):
                group: dict[str, Any] = {"column": column, "group": value, "rows": int(index.size)}
                groups.append(group)
                if index.size < settings.min_rows:
                    continue
                found = self._metric(_of_rows(answers, index))
                group |= {"value": found.value, "low": found.low, "high": found.high}
                if found.value is not None and self._gap(whole, found) > settings.max_gap:
                    worse.append(f"{column}={value}: {found.value:.4f} on {index.size} rows")
        evidence = {"metric": settings.metric, "all": asdict(whole), "groups": groups}
        told = f"{settings.metric} {whole.value:.4f} on all {answers.judged} rows"
        judged = [group for group in groups if group.get("value") is not None]
        if worse:
            return failed(
                f"worse by more than {settings.max_gap:g} for {'; '.join(worse)}; {told}", **evidence
            )
        if not judged:
            return skipped(f"no group has {settings.min_rows} rows", **evidence)
        low = min if settings.metric not in LOWER_IS_BETTER else max
        worst = low(judged, key=lambda group: group["value"])
        return passed(
            f"{told}; the worst of {len(judged)} groups is {worst['column']}={worst['group']} with "
            f"{worst['value']:.4f}",
            **evidence,
        )

    def _metric(self, answers: Answers) -> Metric:
        from mlflow_deploy.monitoring.metrics import measure

        found = measure(answers, self.settings.confidence)
        if self.settings.metric not in found:
            raise DataError(
                f"Metric {self.settings.metric!r} is not known", hint=f"Use one of {', '.join(sorted(found))}"
            )
        return found[self.settings.metric]

    def _gap(self, whole: Metric, group: Metric) -> float:
        """How much worse the group is for sure."""
        if whole.value is None or group.value is None:
            return 0.0
        if self.settings.metric in LOWER_IS_BETTER:
            return (group.value if group.low is None else group.low) - whole.value
        return whole.value - (group.value if group.high is None else group.high)

    def _slices(
        self, frame: pd.DataFrame, column: str, answers: Answers
    ) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """Value -> positions among the judged rows."""
        import pandas as pd

        if column not in frame.columns:
            raise DataError(
                f"The rows have no column {column!r}", hint=f"Columns: {', '.join(map(str, frame.columns))}"
            )
        values = frame[column].iloc[answers.used].reset_index(drop=True)
        if pd.api.types.is_float_dtype(values) or (
            pd.api.types.is_integer_dtype(values) and values.nunique() > self.settings.max_groups
        ):
            values = pd.qcut(values, _BINS, duplicates="drop")
        if values.nunique() > self.settings.max_groups:
            raise DataError(f"Column {column!r} has more than {self.settings.max_groups} values")
        texts = values.astype(object).where(values.notna(), "missing").map(str)
        for value in sorted(texts.unique()):
            yield value, np.flatnonzero((texts == value).to_numpy())


def _of_rows(answers: Answers, index: npt.NDArray[np.int64]) -> Answers:
    """The answers to some of the rows."""
    if answers.task == "regression":
        return replace(
            answers, truth=answers.truth[index], predicted=answers.predicted[index], used=answers.used[index]
        )
    return replace(
        answers,
        truth_codes=answers.truth_codes[index],
        predicted_codes=answers.predicted_codes[index],
        probabilities=None if answers.probabilities is None else answers.probabilities[index],
        used=answers.used[index],
    )
