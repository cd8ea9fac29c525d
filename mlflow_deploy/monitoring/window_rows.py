"""The captured rows of a window as monitors see them: features apart from answers, without failed requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy.monitoring.captured import SERVICE_COLUMNS, STATUS
from mlflow_deploy.monitoring.tables import Table

ANSWER = "prediction"
_OK = 200
_ANSWERS = ("prediction_", "probability_")


class WindowRows:
    """Answered rows by column; read one column at a time.

    Attributes:
        names: the features.
        rows: number of answered rows.
        answers: columns with answers.
    """

    def __init__(self, table: Table, features: Sequence[str] = ()) -> None:
        """Look at the rows.

        Args:
            table: captured rows, with the columns of the service.
            features: names that are features whatever they look like, such as those of the reference.
        """
        self._table = table
        self.answers = [name for name in table.names if _is_answer(name) and name not in features]
        left_out = {*SERVICE_COLUMNS, *self.answers}
        self.names = tuple(name for name in table.names if name not in left_out)
        status = (
            [np.asarray(part.fill_null(0).to_numpy(zero_copy_only=False)) for part in table.column(STATUS)]
            if STATUS in table.names
            else []
        )
        self._mask: npt.NDArray[np.bool_] = np.concatenate(status) == _OK if status else np.empty(0, bool)
        self.rows = int(self._mask.sum())

    def column(self, name: str) -> Iterator[pa.Array]:
        """The values of a feature in batches."""
        at = 0
        for array in self._table.column(name):
            yield array.filter(pa.array(self._mask[at : at + len(array)]))
            at += len(array)

    def prediction(self) -> pa.ChunkedArray | None:
        """The answers of a model with one output, None for others."""
        if ANSWER not in self.answers:
            return None
        parts = list(self.column(ANSWER))
        return pa.chunked_array(parts) if parts else None


class Rows:
    """Some rows of a table in memory as a `Table`, without the columns that are no features."""

    def __init__(self, table: pa.Table, names: Iterable[str]) -> None:
        self._table = table
        self.names = tuple(names)
        self.rows = int(table.num_rows)

    def column(self, name: str) -> Iterator[pa.Array]:
        """The values of a feature in batches."""
        yield from self._table.column(name).chunks


def answered(table: pa.Table) -> pa.Table:
    """The rows of requests that were answered."""
    return table.filter(pc.equal(table.column(STATUS), _OK)) if STATUS in table.column_names else table


def probabilities(
    table: pa.Table, classes: Sequence[str] | None
) -> tuple[npt.NDArray[np.float64] | None, tuple[str, ...]]:
    """(probabilities of shape [rows, classes], the classes in that order); None where the answers have none.

    Args:
        classes: their order in the reference, when it is known.
    """
    prefix = "probability_"
    known = [name.removeprefix(prefix) for name in table.column_names if name.startswith(prefix)]
    if len(known) < 2:
        return None, ()
    order = tuple(classes) if classes and set(classes) == set(known) else tuple(_ordered(known))
    columns = [_floats(table.column(prefix + name)) for name in order]
    return np.column_stack(columns), order


def _ordered(names: list[str]) -> list[str]:
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)


def _floats(column: Any) -> npt.NDArray[np.float64]:
    return np.asarray(
        pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64
    )


def _is_answer(name: str) -> bool:
    return name == ANSWER or name.startswith(_ANSWERS)
