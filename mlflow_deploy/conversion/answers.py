"""Answers of models, native or served: one array, columns as of a DataFrame, or arrays by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlflow_deploy.conversion.feeds import Array

Form = Literal["array", "columns", "dict"]


@dataclass(frozen=True)
class Answer:
    """What a model answers for some rows.

    Attributes:
        form: how the answer is written as JSON; the same words as `Servable.answer`.
        arrays: arrays by name, each with one entry per row; the only array of an `array` answer is named "".
    """

    form: Form
    arrays: Mapping[str, Array]

    @property
    def array(self) -> Array:
        """The array of an `array` answer.

        Raises:
            TypeError: the answer has another form.
        """
        if self.form != "array":
            raise TypeError(f"the model answers with {self.form}, not with an array")
        return self.arrays[""]

    def __len__(self) -> int:
        """Rows; 0 for an answer that has no row for each."""
        lengths = {array.shape[0] if array.ndim else 0 for array in self.arrays.values()}
        return lengths.pop() if len(lengths) == 1 else 0

    def take(self, keep: Array) -> Answer:
        """The answer for some of the rows."""
        return Answer(self.form, {name: array[keep] for name, array in self.arrays.items()})


def as_answer(value: Any) -> Answer:
    """An answer from what a model returned.

    Raises:
        TypeError: it is no array, DataFrame, series or mapping of arrays.
    """
    if isinstance(value, np.ndarray):
        return Answer("array", {"": value})
    if isinstance(value, Mapping) and all(isinstance(item, np.ndarray) for item in value.values()):
        return Answer("dict", {str(name): item for name, item in value.items()})
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        return Answer("columns", {str(name): value[name].to_numpy() for name in value.columns})
    if isinstance(value, pd.Series):
        return Answer("array", {"": value.to_numpy()})
    raise TypeError(f"the model answers with a {type(value).__name__}, not with an array")


def concatenate(parts: Sequence[Answer]) -> Answer:
    """The rows of several answers of one model, in order; without parts an empty array."""
    if not parts:
        return Answer("array", {"": np.empty(0)})
    return Answer(
        parts[0].form,
        {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
    )
