"""The native model's answers on all rows that a converted model is compared on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import structs

from mlflow_deploy.bundle import Feed
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.edges import edge_datasets, invent, refuses
from mlflow_deploy.conversion.native import NativeModel, example_rows
from mlflow_deploy.conversion.parity import Dataset, Reference, refer, with_ties
from mlflow_deploy.conversion.rows import count
from mlflow_deploy.conversion.validation import Validation, column_beyond

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows


@dataclass(frozen=True)
class Evidence:
    """Native answers to compare with, and what to say about how they came to be.

    Attributes:
        references: answers of the method that is served.
        behind: for a classifier that answers with labels, the probabilities behind them.
        missing: columns or tensors in which the native model refuses missing values.
        infinite: columns or tensors in which it refuses Infinity.
        notes: what the report has to say, such as validation rows that could not be read.
    """

    references: Sequence[Reference]
    behind: Sequence[Reference]
    missing: frozenset[Any]
    infinite: frozenset[Any]
    notes: tuple[str, ...]

    @property
    def answer(self) -> Answer | None:
        """An answer of the native model, None when it answered none of the rows."""
        return next((item.answers for item in self.references if len(item.answers)), None)

    @property
    def rows(self) -> Rows | None:
        """Rows that the native model answers, to measure with."""
        return next((item.dataset.rows for item in self.references if len(item.answers)), None)

    def limited(self, feed: Feed) -> Feed:
        """The feed with what it must not take: a graph answers where the native model refuses a value."""
        if feed.accepts == "finite" or _all_in(feed, self.missing):
            return structs.replace(feed, accepts="finite")
        return structs.replace(feed, accepts="nan" if _all_in(feed, self.infinite) else "all")


def _all_in(feed: Feed, refused: frozenset[Any]) -> bool:
    """Whether all columns of a feed are among these, or its tensor is."""
    if feed.tensor is not None:
        return feed.tensor in refused
    return bool(feed.columns) and refused.issuperset(feed.columns)


def gather(native: NativeModel, validation: Validation | None) -> Evidence:
    """Ask the native model for its answers on its example, on validation rows and on edge rows."""
    datasets: list[Dataset] = []
    notes: list[str] = []
    try:
        rows = example_rows(native)
        if rows is not None and count(rows):
            datasets.append(Dataset("input example", rows))
    except Exception as error:  # noqa: BLE001 - an example in any form can fail in any way; it ends up in the report
        notes.append(f"the input example could not be used: {line(error)}")
    if validation is not None:
        if validation.problem:
            notes.append(f"validation rows could not be used: {validation.problem}")
        else:
            try:
                datasets.append(_validation(native, validation))
            except (ValueError, TypeError, KeyError) as error:
                notes.append(f"validation rows could not be used: {line(error)}")
    references = [refer(native, dataset) for dataset in datasets]
    base = max((item.dataset.rows for item in references), key=count, default=None)
    if base is None or not count(base):
        base = invent(native)
        notes.append("the model has no usable input example, so rows were invented from its signature")
        references = [refer(native, Dataset("rows invented from the signature", base))]
    references += [refer(native, dataset) for dataset in edge_datasets(native, base)]
    probabilities = native.probabilities()
    behind = [refer(probabilities, item.dataset) for item in references] if probabilities else []
    answered = any(len(item.answers) for item in behind)
    if probabilities and answered:
        classes = native.class_values
        pairs = zip(references, behind, strict=True)
        references = [with_ties(reference, chances, classes) for reference, chances in pairs]
    missing, infinite = refuses(native, base, math.nan), refuses(native, base, math.inf)
    return Evidence(references, behind if answered else [], missing, infinite, tuple(notes))


def _validation(native: NativeModel, validation: Validation) -> Dataset:
    frame, label = validation.frame, validation.label
    if label is None and native.tensor is not None:
        label = column_beyond(frame, native.tensor.shape)
    if label is None:
        return Dataset("validation rows", native.conform(frame))
    truth = frame[label].to_numpy()
    inputs = frame if label in [column.name for column in native.columns] else frame.drop(columns=[label])
    return Dataset("validation rows", native.conform(inputs), truth=truth)


def line(error: BaseException) -> str:
    """An exception on one line of bounded length, its class first."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
