"""Reads the bodies of MLflow's /invocations for graph models: JSON in four forms, CSV and Parquet."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mlflow_deploy.serving import tables
from mlflow_deploy.serving.errors import BadRequest, InvalidValue
from mlflow_deploy.serving.feeds import FrameFeeds
from mlflow_deploy.serving.rows import PackedRow
from mlflow_deploy.serving.signature import Param
from mlflow_deploy.serving.tensor_feeds import Feeds, TensorFeeds

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_SPLIT_KEYS = {"columns", "data", "index"}
_NEAR = 32  # bytes in which the form of a body that holds nothing else stands
_ONE_FORM = f"The body must be a JSON object with exactly one of {', '.join(FORMS)}"


def decode_document(body: bytes) -> Any:
    """The JSON document in a body, NaN and Infinity included, which Python writes and MLflow takes.

    Raises:
        BadRequest: it is no JSON, or is nested too deep.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest("The body is not valid JSON, or is nested too deep") from error


def _typed_decoder(feeds: FrameFeeds | TensorFeeds) -> tuple[str, Any]:
    """A decoder for the most frequent body of a model of numbers, and the form it reads; "" when there is none.

    It reads `dataframe_split` or `inputs` in one typed step and fails early on any other body.
    """
    content: Any
    if isinstance(feeds, FrameFeeds) and feeds.common in ("float32", "float64"):
        form = "dataframe_split"
        # JSON without null holds finite numbers only, so that no check of the values is needed.
        number: Any = float if feeds.finite else float | None
        content = msgspec.defstruct(
            "Split",
            [("data", list[list[number]]), ("columns", msgspec.Raw), ("index", Any, None)],
            forbid_unknown_fields=True,
        )
    elif isinstance(feeds, TensorFeeds) and feeds.single and feeds.single.dtype in ("float32", "float64"):
        form = "inputs"
        content = float
        for _ in feeds.single.shape:
            content = list[content]
    else:
        return "", None
    body = msgspec.defstruct("Body", [(form, content)], forbid_unknown_fields=True)
    return form, msgspec.json.Decoder(body).decode


class GraphBodies:
    """Turns request bodies into feeds for one model.

    Args:
        feeds: makes the graph's inputs.
        params: of the signature.
        packed: the graph takes packed rows, too.
    """

    def __init__(
        self, feeds: FrameFeeds | TensorFeeds, params: tuple[Param, ...], *, packed: bool = False
    ) -> None:
        self.feeds = feeds
        self._pack = feeds.packer() if packed else None
        self.params = {param.name: param for param in params}
        self._form, self._decode = _typed_decoder(feeds)
        self._usual_columns = msgspec.Raw()
        self._mark = f'"{self._form}"'.encode()

    def from_json(self, body: bytes) -> tuple[Feeds | PackedRow, int]:
        """Feeds, or the packed row, and number of rows from a JSON body.

        Raises:
            BadRequest: the body is in none of the forms.
            InvalidValue: it does not fit the model's signature.
        """
        # `in` would first try the mark as a number, and word the error that it then forgets.
        if self._form and body.find(self._mark, 0, _NEAR) >= 0:
            try:
                typed = self._decode(body)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return self.from_document(decode_document(body))
            feeds, pack = self.feeds, self._pack
            if isinstance(feeds, TensorFeeds):
                if pack is not None and (row := pack(typed.inputs)) is not None:
                    return row, 1
                return feeds.from_numbers(typed.inputs)
            split = typed.dataframe_split
            names = (
                feeds.names if split.columns == self._usual_columns else self._columns(feeds, split.columns)
            )
            if pack is not None and names is feeds.names and (row := pack(split.data)) is not None:
                return row, 1
            return feeds.from_rows(names, split.data, trusted=feeds.finite)
        return self.from_document(decode_document(body))

    def _columns(self, feeds: FrameFeeds, raw: msgspec.Raw) -> list[Any] | None:
        """The column names in a body; callers repeat their text, so that it is seldom read anew."""
        columns: Any = decode_document(bytes(raw))
        if not isinstance(columns, list | None):
            raise BadRequest("`columns` of dataframe_split must be a list")
        if columns == feeds.names:
            self._usual_columns = raw.copy()
        names: list[Any] | None = columns
        return names

    def from_document(self, document: Any) -> tuple[Feeds, int]:
        """Feeds from a parsed JSON body; same errors as `from_json`."""
        if not isinstance(document, dict):
            raise BadRequest(_ONE_FORM)
        given = [form for form in FORMS if form in document]
        if len(given) != 1:
            raise BadRequest(_ONE_FORM, why=f"it has {len(given)} of them")
        self.check_params(document.get("params"))
        form, content = given[0], document[given[0]]
        if form == "dataframe_split":
            return self.feeds.from_rows(*_split_parts(content))
        if form == "dataframe_records":
            return self._from_records(content)
        return self._from_values(content, form)

    def from_csv(self, text: str) -> tuple[Feeds, int]:
        """Feeds from CSV with a header line."""
        return self.feeds.from_rows(*tables.read_csv(text, self._text_columns()))

    def from_parquet(self, data: bytes) -> tuple[Feeds, int]:
        """Feeds from a Parquet file."""
        types = {c.name: c.type for c in self.feeds.columns} if isinstance(self.feeds, FrameFeeds) else {}
        return self.feeds.from_rows(*tables.read_parquet(data, types))

    def _text_columns(self) -> set[Any]:
        if not isinstance(self.feeds, FrameFeeds):
            return set()
        return {column.name for column in self.feeds.columns if column.type == "string"}

    def check_params(self, params: Any) -> None:
        """Refuse a parameter that would change the answer: the graph was converted with the defaults."""
        if not self.params or params is None:
            return
        if not isinstance(params, dict):
            raise InvalidValue("`params` must be an object")
        for name, param in self.params.items():
            if name in params and params[name] != param.default:
                raise InvalidValue(
                    f"The parameter {name!r} cannot be changed: this form of the model is fixed to its default",
                    hint="Deploy the model with format=pyfunc to pass parameters",
                )

    def _from_records(self, content: Any) -> tuple[Feeds, int]:
        if not isinstance(content, list):
            raise BadRequest("dataframe_records must be a list of records")
        unnamed = isinstance(self.feeds, FrameFeeds) and self.feeds.columns[0].name is None
        if unnamed and content and all(isinstance(row, list) for row in content):
            # MLflow makes a DataFrame of lists, too, when the columns have no names.
            return self.feeds.from_rows(None, content)
        if not all(isinstance(record, dict) for record in content):
            raise BadRequest("dataframe_records must be a list of objects")
        return self.feeds.from_records(content)

    def _from_values(self, content: Any, form: str) -> tuple[Feeds, int]:
        """`inputs` and `instances`, which follow the rules of TensorFlow Serving."""
        if isinstance(self.feeds, TensorFeeds):
            if _is_records(content):
                return self.feeds.from_records(content)
            return self.feeds.from_value(content)
        if _is_records(content):
            if form == "instances":
                self._same_keys(content)
            return self.feeds.from_records([self._texts(record) for record in content])
        return self._frame_values(self.feeds, content)

    def _texts(self, columns: dict[Any, Any]) -> dict[Any, Any]:
        """The columns, with numbers in text columns spelled out, as MLflow does in these forms only."""
        names = self._text_columns() & columns.keys()
        return {**columns, **{name: _spelled(columns[name]) for name in names}} if names else columns

    def _same_keys(self, records: list[dict[str, Any]]) -> None:
        keys = records[0].keys()
        if any(record.keys() != keys for record in records):
            raise InvalidValue("The records of `instances` must all have the same columns")

    def _frame_values(self, feeds: FrameFeeds, content: Any) -> tuple[Feeds, int]:
        named = feeds.columns[0].name is not None
        if isinstance(content, dict):
            if not named:
                raise BadRequest("The model's columns have no names: send a list of rows")
            return feeds.from_columns(self._texts(content))
        if named and (len(feeds.columns) > 1 or not isinstance(content, list)):
            missing = [column.name for column in feeds.columns if column.required]
            raise InvalidValue(
                f"Model is missing inputs {missing}", hint="Send an object that maps column names to lists"
            )
        values = content if isinstance(content, list) else [content]
        if named:
            return feeds.from_columns(self._texts({feeds.names[0]: values}))
        rows = values if values and isinstance(values[0], list) else [[value] for value in values]
        return feeds.from_rows(None, rows)


def _is_records(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(isinstance(item, dict) for item in content)


def _spelled(value: Any) -> Any:
    if isinstance(value, list):
        return [item if isinstance(item, str | list) else str(item) for item in value]
    return value if isinstance(value, str) else str(value)


def _split_parts(content: Any) -> tuple[list[Any] | None, list[Any]]:
    """Columns and rows of a `dataframe_split` object."""
    if not isinstance(content, dict):
        raise BadRequest("dataframe_split must be an object")
    if "data" not in content or content.keys() - _SPLIT_KEYS:
        raise BadRequest("dataframe_split must have `data`, and may have `columns` and `index`, nothing else")
    columns, rows = content.get("columns"), content["data"]
    if not isinstance(rows, list) or not isinstance(columns, list | None):
        raise BadRequest("`data` and `columns` of dataframe_split must be lists")
    if rows and not all(isinstance(row, list) for row in rows):
        # pandas reads a flat list as a single column.
        rows = [row if isinstance(row, list) else [row] for row in rows]
    return columns, rows
