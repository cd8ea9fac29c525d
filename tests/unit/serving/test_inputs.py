"""From rows, columns, tensors, CSV and Parquet to the graph's inputs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy.bundle import Feed, Output, Servable
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving import tables
from mlflow_deploy.serving.answers import Answers
from mlflow_deploy.serving.bodies import GraphBodies, decode_document
from mlflow_deploy.serving.errors import BadRequest, InvalidValue, TooLarge
from mlflow_deploy.serving.feeds import FrameFeeds, make_feeds
from mlflow_deploy.serving.signature import Column, Param, Signature, Tensor, parse_signature
from mlflow_deploy.serving.tensor_feeds import TensorFeeds

A, B = Column("a", "double"), Column("b", "double", required=False)
ONE = Feed(name="X", dtype="float32", columns=("a", "b"), shape=(-1, 2))


def test_signature_document() -> None:
    signature = parse_signature(
        {
            "inputs": [{"type": "double", "name": "a", "required": True}],
            "outputs": [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}],
            "params": [{"name": "p", "type": "long", "default": 1, "shape": None}],
        }
    )
    assert signature is not None
    assert signature.columns == (A,)
    assert signature.output_tensors[0].shape == (-1,)
    assert signature.params == (Param("p", "long", 1),)
    assert parse_signature(None) is None
    assert parse_signature({"inputs": None, "outputs": None, "params": None}) == Signature()


def test_rows_in_any_order_with_extra_and_absent_columns() -> None:
    feeds = FrameFeeds([ONE], [A, B], 10)
    expected = [[1.0, 2.0], [3.0, 4.0]]
    assert feeds.from_rows(["a", "b"], [[1, 2], [3, 4]])[0]["X"].tolist() == expected
    assert feeds.from_rows(["b", "a"], [[2, 1], [4, 3]])[0]["X"].tolist() == expected
    assert feeds.from_rows(["x", "b", "a"], [["?", 2, 1], [None, 4, 3]])[0]["X"].tolist() == expected
    absent = feeds.from_rows(["a"], [[1], [3]])[0]["X"]
    assert absent.dtype == np.float32
    assert np.isnan(absent[:, 1]).all()
    assert np.isnan(feeds.from_rows(["a", "b"], [[1, None]])[0]["X"][0, 1])
    assert feeds.from_rows(["a", "b"], [[1, 2], [3]])[0]["X"].shape == (2, 2)


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (["b"], [[1]]),
        (["a", "b"], []),
        (["a", "b"], [[1]]),
        (["a", "b"], [[1, 2, 3]]),
        (["a", "b"], [["x", 1]]),
        (["a", "b"], [[[1], 1]]),
        (["a", "a"], [[1, 1]]),
        ([["a"], "b"], [[1, 1]]),
        (["a", "b"], [1, 2]),
    ],
)
def test_rows_that_do_not_fit(columns: list[Any], rows: list[Any]) -> None:
    with pytest.raises(InvalidValue):
        FrameFeeds([ONE], [A, B], 10).from_rows(columns, rows)


def test_row_limit() -> None:
    feeds = FrameFeeds([ONE], [A, B], 2)
    for call in (
        lambda: feeds.from_rows(["a", "b"], [[1, 2]] * 3),
        lambda: feeds.from_records([{"a": 1}] * 3),
        lambda: feeds.from_columns({"a": [1, 2, 3]}),
        lambda: TensorFeeds([Feed(name="X", dtype="float32", tensor="")], None, 2).from_value([1, 2, 3]),
    ):
        with pytest.raises(TooLarge):
            call()


def test_what_the_native_model_refuses_is_refused() -> None:
    for accepts, nan, infinity in (("all", True, True), ("nan", True, False), ("finite", False, False)):
        feed = Feed(name="X", dtype="float32", columns=("a", "b"), accepts=accepts)  # type: ignore[arg-type]
        feeds = FrameFeeds([feed], [A, B], 10)
        for value, taken in ((None, nan), (float("nan"), nan), (float("inf"), infinity), (1.0, True)):
            if taken:
                feeds.from_rows(["a", "b"], [[value, 1]])
            else:
                with pytest.raises(InvalidValue):
                    feeds.from_rows(["a", "b"], [[value, 1]])


def test_text_missing_and_mixed_columns() -> None:
    columns = [Column("n", "long"), Column("t", "string"), Column("f", "boolean")]
    feeds = FrameFeeds(
        [
            Feed(name="N", dtype="int64", columns=("n",)),
            Feed(name="T", dtype="str", columns=("t",), missing="?"),
            Feed(name="F", dtype="float32", columns=("f", "n")),
        ],
        columns,
        10,
    )
    made, count = feeds.from_records([{"n": 1.7, "t": None, "f": True}, {"n": "3", "t": 5, "f": 0}])
    assert count == 2
    assert made["N"].tolist() == [[1], [3]]
    assert made["T"].tolist() == [["?"], ["5"]]
    assert made["F"].tolist() == [[1.0, 1.0], [0.0, 3.0]]
    with pytest.raises(InvalidValue):
        feeds.from_records([{"n": None, "t": "a", "f": True}])
    with pytest.raises(InvalidValue):
        feeds.from_records([{"n": 1, "t": ["a"], "f": True}])


def test_missing_numbers_become_what_the_feed_says() -> None:
    columns = [Column("a", "double", required=False)]
    feeds = FrameFeeds([Feed(name="X", dtype="int64", columns=("a",), missing=-1)], columns, 10)
    assert feeds.from_rows(["a"], [[None], [2.0]])[0]["X"].tolist() == [[-1], [2]]
    assert feeds.from_rows(["z"], [[5]])[0]["X"].tolist() == [[-1]]


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ([[]], [[]]),
        ([{}], [[1]]),
        (["left"], [[]]),
        (["left", "z"], [[[1.0, 2.0]]]),
        (["z"], [[1]]),
        (None, [[1]]),
    ],
)
def test_tables_that_make_no_tensor(columns: list[Any] | None, rows: list[Any]) -> None:
    feeds = TensorFeeds(
        [Feed(name="x", dtype="float32", tensor="left", shape=(-1, 2))],
        Signature(tensors=(Tensor("left", "float32", (-1, 2)),)),
        10,
    )
    assert feeds.from_rows(["left"], [[[1, 2]], [[3, 4]]])[0]["x"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(InvalidValue):
        feeds.from_rows(columns, rows)


def test_columns_by_position_when_they_have_no_names() -> None:
    feeds = FrameFeeds([Feed(name="X", dtype="float64", columns=("a",))], (), 10)
    assert feeds.names == ["a"]
    unnamed = FrameFeeds([], [Column(None, "double"), Column(None, "double")], 10)
    assert unnamed.names == [0, 1]


def test_feeds_that_contradict_the_signature() -> None:
    with pytest.raises(ConfigError):
        make_feeds([Feed(name="X", dtype="float32", columns=("z",))], Signature(columns=(A,)), 10)
    with pytest.raises(ConfigError):
        make_feeds(
            [Feed(name="X", dtype="float32", columns=("a",)), Feed(name="Y", dtype="float32")], None, 10
        )
    with pytest.raises(ConfigError):
        make_feeds([], None, 10)
    dates = Signature(columns=(Column("d", "datetime"),))
    with pytest.raises(ConfigError):
        make_feeds([Feed(name="X", dtype="float32", columns=("d",))], dates, 10)


def test_bodies() -> None:
    bodies = GraphBodies(FrameFeeds([ONE], [A, B], 10), (Param("p", "long", 1),))
    for body in (
        b'{"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}',
        b' {"params": {"p": 1}, "dataframe_split": {"columns": ["a", "b"], "data": [[1, 2.0]], "index": [3]}}',
        b'{"dataframe_records": [{"a": "1", "b": 2}]}',
        b'{"inputs": {"a": [1], "b": [2]}}',
        b'{"inputs": {"a": 1, "b": 2}}',
        b'{"inputs": [{"a": 1, "b": 2}]}',
        b'{"instances": [{"a": 1, "b": 2}]}',
    ):
        assert bodies.from_json(body)[0]["X"].tolist() == [[1.0, 2.0]]
    assert np.isinf(bodies.from_json(b'{"inputs": {"a": Infinity}}')[0]["X"][0, 0])
    with pytest.raises(InvalidValue, match="parameter"):
        bodies.from_json(b'{"inputs": {"a": 1}, "params": {"p": 2}}')
    with pytest.raises(InvalidValue):
        bodies.from_json(b'{"instances": [{"a": 1}, {"a": 1, "b": 2}]}')
    with pytest.raises(BadRequest):
        bodies.from_json(b'{"inputs": [[1]], "instances": [[1]]}')
    with pytest.raises(BadRequest):
        decode_document(b"[" * 10_000)


def test_csv() -> None:
    columns, rows = tables.read_csv('t,n,f\n"a, b",1,true\nNA,2.5,\n\nx,12345678901234567\n', {"t"})
    assert columns == ["t", "n", "f"]
    assert rows == [["a, b", 1, True], [None, "2.5", None], ["x", 12345678901234567, None]]
    for text in ("", "a\n1,2\n", '"'):
        with pytest.raises(BadRequest):
            tables.read_csv(text, set())


def _parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def test_parquet_casts_only_safely() -> None:
    data = _parquet(a=[1.5, None], b=pa.array([1, 2], pa.int32()), extra=["x", "y"])
    assert tables.read_parquet(data, {"a": "double", "b": "double"}) == (["a", "b"], [[1.5, 1], [None, 2]])
    for wanted, values in (
        ("long", [1.5]),
        ("double", pa.array([5], pa.int64())),
        ("long", [1, None]),
        ("string", [1]),
    ):
        with pytest.raises(InvalidValue):
            tables.read_parquet(_parquet(a=values), {"a": wanted})
    assert tables.read_parquet(_parquet(a=pa.array([0, 1], pa.int64())), {"a": "double"})[1] == [[0], [1]]
    with pytest.raises(BadRequest):
        tables.read_parquet(b"PAR1", {})


def test_answers() -> None:
    def answers(form: Any, *outputs: Output) -> Answers:
        return Answers(Servable(kind="onnx", path="x", outputs=outputs, answer=form))

    array = answers("array", Output(name="y", dtype="float64", squeeze=True))
    made = array.finish([np.array([[1.0], [np.nan]], "float32")])
    assert made[0].dtype == np.float64
    assert array.to_json(made) == b'{"predictions":[1.0, NaN]}'
    assert array.to_tensors(made)[0][0] == "predictions"
    columns = answers(
        "columns", Output(name="l", dtype="str", column="label"), Output(name="p", dtype="float32")
    )
    made = columns.finish([np.array(["a", "null"], object), np.array([0.5, 1], "float32")])
    assert columns.to_json(made) == b'{"predictions":[{"label": "a", "p": 0.5}, {"label": "null", "p": 1.0}]}'
    both = answers("dict", Output(name="a", dtype="int64"), Output(name="b", dtype="bool"))
    assert both.to_json([np.array([1]), np.array([True])]) == b'{"predictions":{"a":[1],"b":[true]}}'
    with pytest.raises(ConfigError):
        answers("array")
