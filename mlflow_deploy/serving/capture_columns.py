"""Turns what models took and answered into columns: the one form of captured rows and of reference rows."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy.bundle import SIGNATURE, Bundle, Feed
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving.arrow_stream import Column
from mlflow_deploy.serving.rows import PackedRow
from mlflow_deploy.serving.signature import NUMPY_TYPES, Signature, parse_signature
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import CaptureSettings

PREDICTION = "prediction"
PROBABILITY = "probability_"
_SUM_TOLERANCE = 1e-3
_LEAST_KEY_BYTES = 16
_EPOCH_UNIT = "datetime64[us]"

Tensors = Callable[[Any], Sequence[tuple[str, Array]]]


class Features:
    """Makes the feature columns of requests.

    Args:
        bundle: tells how the graph's inputs are made, or the columns of a pyfunc model.
        settings: which features are kept, and of which only a hash.

    Attributes:
        left_out: features that cannot be kept, with the reason; it grows as requests show it.

    Raises:
        ConfigError: features shall be hashed and there is no key for it.
    """

    def __init__(self, bundle: Bundle, settings: CaptureSettings) -> None:
        self._feeds: tuple[Feed, ...] = bundle.manifest.servable.feeds
        self._signature = parse_signature(bundle.document(SIGNATURE))
        self._settings = settings
        self._hasher = Hasher(settings) if settings.hash else None
        self.left_out: dict[str, str] = {}

    def columns(self, given: Sequence[Any], counts: Sequence[int]) -> list[Column]:
        """The features of calls, one row for each of theirs.

        Args:
            given: `Call.data` of each.
            counts: `Call.rows` of each.
        """
        made = self._of_feeds(given, counts) if self._feeds else self._of_data(given, counts)
        kept = []
        for column in made:
            if not self._wanted(column.name):
                continue
            if self._hasher is not None and column.name in self._settings.hash:
                column = self._hasher.column(column)
            kept.append(column)
        return kept

    def _wanted(self, name: str) -> bool:
        settings = self._settings
        return name not in settings.exclude and (not settings.columns or name in settings.columns)

    # --- graphs ---

    def _of_feeds(self, given: Sequence[Any], counts: Sequence[int]) -> Iterable[Column]:
        for feed in self._feeds:
            parts = _parts(feed, given)
            if feed.columns:
                values = np.ascontiguousarray((parts[0] if len(parts) == 1 else np.concatenate(parts)).T)
                for name, column in zip(feed.columns, values, strict=True):
                    yield (
                        _text(name, column, feed.missing) if column.dtype == object else Column(name, column)
                    )
                continue
            name = feed.tensor or "inputs"
            matrix = self._matrix(name, parts, counts)
            for column in () if matrix is None else _spread(name, matrix):
                text = column.values.dtype == object
                yield _text(column.name, column.values, feed.missing) if text else column

    def _matrix(self, name: str, parts: Sequence[Array], counts: Sequence[int]) -> Array | None:
        """Tensors as one of shape [rows, values], None when their values are not kept."""
        shapes = {part.shape[1:] for part in parts}
        size = math.prod(next(iter(shapes)))
        if any(part.ndim == 0 or len(part) != count for part, count in zip(parts, counts, strict=True)):
            why = "it does not have a row for each row of the request"
        elif size > self._settings.max_values:
            why = f"it has {size} values in each row, more than capture.max_values"
        elif len(shapes) > 1:
            why = "its shape differs between requests"
        else:
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return whole.reshape(len(whole), size)
        self.left_out[name] = why
        return None

    # --- pyfunc ---

    def _of_data(self, given: Sequence[Any], counts: Sequence[int]) -> Iterable[Column]:
        rows, inputs = sum(counts), [data for data, *_ in given]
        columns = _of_frames(inputs) if hasattr(inputs[0], "columns") else self._of_arrays(inputs, counts)
        types = _types(self._signature)
        for name, values in columns.items():
            if len(values) != rows:
                self.left_out[name] = "it does not have a value for each row of the request"
                continue
            typed = _typed(name, values, types.get(name))
            if typed is None:
                self.left_out[name] = "its type cannot be kept"
            else:
                yield typed

    def _of_arrays(self, given: Sequence[Any], counts: Sequence[int]) -> dict[str, Array]:
        """Columns of tensors by name, or of the one tensor."""
        found: dict[str, Array] = {}
        named = [value if isinstance(value, Mapping) else {"inputs": value} for value in given]
        for name in named[0]:
            parts = [np.asarray(value[name]) for value in named if name in value]
            if len(parts) != len(counts):
                self.left_out[str(name)] = "some requests do not have it"
                continue
            matrix = self._matrix(str(name), parts, counts)
            if matrix is not None:
                found |= {column.name: column.values for column in _spread(str(name), matrix)}
        return found


class Answers:
    """Makes the columns of answers.

    Args:
        to_tensors: gives an answer as named tensors.
        max_values: most values of an output that are kept of each row.
        classes: names of the classes whose probabilities are answered; without them they are numbered.
    """

    def __init__(self, to_tensors: Tensors, max_values: int, classes: Sequence[str] = ()) -> None:
        self._to_tensors = to_tensors
        self._max_values = max_values
        self._classes = classes
        self._probable: bool | None = None
        self.left_out: dict[str, str] = {}

    def columns(self, results: Sequence[Any], counts: Sequence[int]) -> list[Column]:
        """The answers of calls, one row for each of theirs.

        Args:
            results: of each.
            counts: `Call.rows` of each.
        """
        names = [name for name, _ in self._to_tensors(results[0])]
        outputs = self._outputs(results, names)
        columns = []
        for at, name in enumerate(names):
            label = PREDICTION if len(names) == 1 else f"{PREDICTION}_{name}"
            parts = [output[at] for output in outputs]
            if not parts or not _row_by_row(parts, counts):
                self.left_out[label] = "its shape is not one row for each row of the request"
                continue
            values = parts[0] if len(parts) == 1 else np.concatenate(parts)
            size = math.prod(values.shape[1:])
            if size > self._max_values:
                self.left_out[label] = f"it has {size} values in each row, more than capture.max_values"
                continue
            matrix = values.reshape(len(values), size)
            if len(names) == 1 and self._gives_probabilities(matrix):
                known = len(self._classes) == matrix.shape[1]
                shown: Sequence[Any] = self._classes if known else range(matrix.shape[1])
                chances = zip(shown, np.ascontiguousarray(matrix.T), strict=True)
                columns += [Column(f"{PROBABILITY}{each}", part) for each, part in chances]
                continue
            for column in _spread(label, matrix):
                typed = _typed(column.name, column.values, None)
                if typed is not None:
                    columns.append(typed)
        return columns

    def _outputs(self, results: Sequence[Any], names: Sequence[str]) -> Sequence[Sequence[Array]]:
        """The arrays of each answer in the order of their names; none when the names differ between answers."""
        if set(map(type, results)) == {list} and set(map(len, results)) == {len(names)}:
            return results  # Those of a graph, in its order.
        named = [self._to_tensors(result) for result in results]
        if len(names) > 1 and any([name for name, _ in outputs] != names for outputs in named):
            return []
        return [[array for _, array in outputs] for outputs in named]

    def _gives_probabilities(self, matrix: Array) -> bool:
        """Whether the only output is a probability for each class; the first answers decide for all."""
        if self._probable is None and len(matrix):
            self._probable = bool(
                matrix.shape[1] > 1
                and matrix.dtype.kind == "f"
                and (matrix >= 0).all()
                and np.allclose(matrix.sum(axis=1), 1.0, atol=_SUM_TOLERANCE)
            )
        return bool(self._probable)


class Hasher:
    """Replaces values by the first 16 bytes of their HMAC-SHA-256, in hexadecimal digits.

    Raises:
        ConfigError: there is no key, or it is too short.
    """

    def __init__(self, settings: CaptureSettings) -> None:
        self._key = _read_key(settings.hash_key)
        if len(self._key) < _LEAST_KEY_BYTES:
            raise ConfigError(
                f"The key at {settings.hash_key} is too short",
                why=f"it has {len(self._key)} bytes",
                hint=f"Give at least {_LEAST_KEY_BYTES} random bytes",
            )

    def text(self, value: str) -> str:
        """The hash of one value."""
        return hmac.new(self._key, value.encode(errors="replace"), hashlib.sha256).hexdigest()[:32]

    def column(self, column: Column) -> Column:
        """The column with hashes in place of its values; whole numbers are hashed as such, 7.0 like 7."""
        valid = column.valid
        if column.values.dtype.kind == "f":
            present = ~np.isnan(column.values)
            valid = present if valid is None else valid & present
        # One list, in which NaN is found again although it does not equal itself.
        items = column.values.tolist()
        hashes = {value: self.text(spelled(value)) for value in set(items)}
        values = np.array([hashes[value] for value in items], object)
        return Column(column.name, values, valid)


# --- details ---


def _row_by_row(parts: Sequence[Array], counts: Sequence[int]) -> bool:
    """Whether arrays of one shape have a row for each row of the calls."""
    shapes = [part.shape for part in parts]
    return () not in shapes and [shape[0] for shape in shapes] == list(counts) and _alike(shapes)


def _alike(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether shapes differ in their first dimension at most."""
    return len({shape[1:] for shape in set(shapes)}) == 1


def _parts(feed: Feed, given: Sequence[Any]) -> list[Array]:
    """A graph's input in each call."""
    kinds = set(map(type, given))
    if kinds == {PackedRow}:
        packed = np.frombuffer(b"".join([data.data for data in given]), feed.dtype)
        return [packed.reshape(len(given), -1)]
    if PackedRow not in kinds:
        return [data[feed.name] for data in given]
    return [(data.feeds() if isinstance(data, PackedRow) else data)[feed.name] for data in given]


def _read_key(source: str) -> bytes:
    """The bytes at env:NAME or file:PATH."""
    kind, _, place = source.partition(":")
    try:
        if kind == "env":
            return os.environb[os.fsencode(place)].strip()
        if kind == "file":
            return Path(place).expanduser().read_bytes().strip()
    except KeyError as error:
        raise ConfigError(f"There is no environment variable {place} with the key of capture.hash") from error
    except OSError as error:
        raise ConfigError(f"The key of capture.hash cannot be read from {place}", why=str(error)) from error
    raise ConfigError("capture.hash_key must be env:NAME or file:PATH")


def spelled(value: Any) -> str:
    """A value as text before it is hashed: a whole number is the same in every type."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _spread(name: str, matrix: Array) -> list[Column]:
    """A column for each value of the rows, shape [rows, values]."""
    values = np.ascontiguousarray(matrix.T)
    if len(values) == 1:
        return [Column(name, values[0])]
    return [Column(f"{name}_{at}", column) for at, column in enumerate(values)]


def _of_frames(frames: Sequence[Any]) -> dict[str, Array]:
    """Columns of DataFrames; those that some frames lack are missing there."""
    if all(list(frame.columns) == list(frames[0].columns) for frame in frames[1:]):
        parts = [frame.to_numpy() for frame in frames]
        if any(part.dtype == object for part in parts):
            parts = [part.astype(object) for part in parts]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return {str(name): whole[:, at] for at, name in enumerate(frames[0].columns)}
    names = dict.fromkeys(name for frame in frames for name in frame.columns)
    return {
        str(name): np.concatenate(
            [
                frame[name].to_numpy(object) if name in frame.columns else np.full(len(frame), None, object)
                for frame in frames
            ]
        )
        for name in names
    }


def _types(signature: Signature | None) -> dict[str, str]:
    """numpy types of the columns that a signature names."""
    if signature is None:
        return {}
    return {
        str(column.name if column.name is not None else at): NUMPY_TYPES.get(column.type, "")
        for at, column in enumerate(signature.columns)
    }


def _text(name: str, values: Array, missing: object) -> Column:
    """A text column of a graph, in which a marker stands for missing values."""
    texts = np.array([value if isinstance(value, str) else str(value) for value in values.tolist()], object)
    if missing is None:
        return Column(name, texts)
    valid = np.array([value != str(missing) for value in texts.tolist()], bool)
    return Column(name, texts, None if valid.all() else valid)


def _typed(name: str, values: Array, dtype: str | None) -> Column | None:
    """Values in a type that Arrow has; None when they have none, such as bytes or lists.

    Args:
        dtype: the type that the signature names: a numpy type, `str` or `bytes`; None = as the values are.
    """
    if dtype in ("bytes", ""):
        return None
    kind = values.dtype.kind
    if kind == "M":
        return Column(
            name, values.astype(_EPOCH_UNIT), None if not np.isnat(values).any() else ~np.isnat(values)
        )
    if kind in "SU":
        return Column(name, values.astype(str).astype(object))
    if kind in "biuf" and dtype != "str":
        return _numbers(name, values, dtype)
    if kind not in "Obiuf":
        return None
    items = values.tolist()
    valid = np.array([not _missing(item) for item in items], bool)
    present = [item for item, there in zip(items, valid, strict=True) if there]
    if any(isinstance(item, (list, tuple, dict, set, bytes, np.ndarray)) for item in present):
        return None
    return _objects(name, items, valid, present, dtype)


def _numbers(name: str, values: Array, dtype: str | None) -> Column:
    """Numbers in the type that the signature names, so that all batches have the same one."""
    if dtype is None or dtype.startswith("datetime") or values.dtype == dtype:
        return Column(name, values)
    if values.dtype.kind == "f" and np.dtype(dtype).kind in "iub":
        valid = np.isfinite(values)
        return Column(name, np.where(valid, values, 0).astype(dtype), None if valid.all() else valid)
    return Column(name, values.astype(dtype))


def _objects(name: str, items: list[Any], valid: Array, present: list[Any], dtype: str | None) -> Column:
    """A column of Python values, of which some may be missing."""
    wanted = dtype if dtype is not None else _common(present)
    if wanted.startswith("datetime"):
        wanted = _EPOCH_UNIT
    mask = None if valid.all() else valid
    if wanted != "str":
        values = np.zeros(len(items), wanted)
        try:
            values[valid] = np.array(present, wanted)
        except (ValueError, TypeError, OverflowError):
            # Whatever the model takes here, it is not what the signature says.
            wanted = "str"
        else:
            return Column(name, values, mask)
    texts = np.array([str(item) if there else "" for item, there in zip(items, valid, strict=True)], object)
    return Column(name, texts, mask)


def _common(present: list[Any]) -> str:
    if present and all(isinstance(item, (bool, np.bool_)) for item in present):
        return "bool"
    if all(isinstance(item, (int, float, np.integer, np.floating)) for item in present) and present:
        return "float64"
    return "str"


def _missing(item: Any) -> bool:
    """None, NaN, NaT and pandas' NA are missing; none of them equals itself."""
    if item is None:
        return True
    if isinstance(item, (str, bool, int)):
        return False
    return type(item).__name__ in ("NAType", "NaTType") or (isinstance(item, float) and item != item)
