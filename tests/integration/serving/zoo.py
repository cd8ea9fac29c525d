"""A zoo of small real models: each as an MLflow model folder and as the bundle that would be served for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_deploy.bundle import Bundle, Feed, Output
from tests.integration.serving import bundles


@dataclass
class Animal:
    """One model of the zoo.

    Attributes:
        native: MLflow model folder.
        bundle: what our server runs.
        table: rows to make requests from, None for models that take tensors.
        tensors: tensors to make requests from, by name.
        params: params to try.
    """

    native: Path
    bundle: Bundle
    table: pd.DataFrame | None = None
    tensors: dict[str, Any] = field(default_factory=dict)
    params: list[Any] = field(default_factory=list)


def doubles(folder: Path) -> Animal:
    """Thirty double columns, gradient boosting, ONNX."""
    native, bundle = bundles.boosting(folder)
    return Animal(native, bundle, bundles.training_table()[0].iloc[[3, 50, 200]].reset_index(drop=True))


def probabilities(folder: Path) -> Animal:
    """Logged with predict_proba, so that the answer is a list of two numbers per row; ONNX."""
    from mlflow.models import infer_signature
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression

    table, target = bundles.training_table()
    table = table.iloc[:, :4] / 100
    model = LogisticRegression().fit(table, target)
    signature = infer_signature(table, model.predict_proba(table))
    native = bundles.save_sklearn(model, folder / "proba", signature, pyfunc_predict_fn="predict_proba")
    content = bundles.to_onnx(
        model, [("X", FloatTensorType([None, 4]))], folder / "proba-onnx", options={"zipmap": False}
    )
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(
            Feed(name="X", dtype="float32", columns=tuple(table.columns), shape=(-1, 4), accepts="finite"),
        ),
        outputs=(Output(name="probabilities", dtype="float64"),),
    )
    return Animal(native, bundle, table.iloc[[0, 7]].reset_index(drop=True))


def mixed(folder: Path) -> Animal:
    """Numbers with gaps, an optional column, and text categories; ONNX with one feed per column."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.uniform(18, 80, 200),
            "income": np.where(rng.random(200) < 0.2, np.nan, rng.uniform(1e3, 9e3, 200)),
            "city": rng.choice(["Berlin", "Zürich", "北京"], 200),
        }
    )
    target = np.where((table.age > 45) ^ (table.city == "北京"), "yes", "no")
    model = make_pipeline(
        ColumnTransformer(
            [
                ("numbers", SimpleImputer(), ["age", "income"]),
                ("words", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ]
        ),
        RandomForestClassifier(20, random_state=0),
    ).fit(table, target)
    signature = ModelSignature(
        inputs=Schema([ColSpec("double", "age"), ColSpec("double", "income"), ColSpec("string", "city")]),
        outputs=Schema([ColSpec("string")]),
    )
    native = bundles.save_sklearn(model, folder / "mixed", signature)
    number = FloatTensorType([None, 1])
    content = bundles.to_onnx(
        model,
        [("age", number), ("income", number), ("city", StringTensorType([None, 1]))],
        folder / "mixed-onnx",
        options={"zipmap": False},
    )
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(
            Feed(name="age", dtype="float32", columns=("age",), shape=(-1, 1), accepts="nan"),
            Feed(name="income", dtype="float32", columns=("income",), shape=(-1, 1), accepts="nan"),
            Feed(name="city", dtype="str", columns=("city",), shape=(-1, 1), missing=""),
        ),
        outputs=(Output(name="label", dtype="str"),),
    )
    return Animal(native, bundle, table.iloc[[0, 1, 2, 3]].reset_index(drop=True))


def optional(folder: Path) -> Animal:
    """A tree model that takes NaN, with an optional column; ONNX."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import HistGradientBoostingRegressor

    class Reordered(HistGradientBoostingRegressor):  # a caller may leave the optional column out
        def predict(self, X: pd.DataFrame) -> Any:  # noqa: N803
            return super().predict(X.reindex(columns=["a", "b"]))

    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.normal(size=(300, 2)), columns=["a", "b"])
    target = table.a + table.b
    fitted = HistGradientBoostingRegressor(max_iter=10, random_state=0).fit(table, target)
    model = Reordered(max_iter=10, random_state=0).fit(table, target)
    signature = ModelSignature(
        inputs=Schema([ColSpec("double", "a"), ColSpec("double", "b", required=False)]),
        outputs=Schema([ColSpec("double")]),
    )
    native = bundles.save_sklearn(model, folder / "optional", signature)
    content = bundles.to_onnx(fitted, [("X", FloatTensorType([None, 2]))], folder / "optional-onnx")
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(Feed(name="X", dtype="float32", columns=("a", "b"), shape=(-1, 2)),),
        outputs=(Output(name="variable", dtype="float64", squeeze=True),),
    )
    return Animal(native, bundle, table.iloc[[0, 1, 2]].reset_index(drop=True))


def longs(folder: Path) -> Animal:
    """Long and integer columns, which refuse gaps; ONNX."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(2)
    table = pd.DataFrame({"n": rng.integers(0, 50, 100), "m": rng.integers(0, 9, 100).astype("int32")})
    model = LinearRegression().fit(table, table.n * 2.0 + table.m)
    signature = ModelSignature(
        inputs=Schema([ColSpec("long", "n"), ColSpec("integer", "m")]), outputs=Schema([ColSpec("double")])
    )
    native = bundles.save_sklearn(model, folder / "longs", signature)
    content = bundles.to_onnx(model, [("X", FloatTensorType([None, 2]))], folder / "longs-onnx")
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(Feed(name="X", dtype="float32", columns=("n", "m"), shape=(-1, 2), accepts="finite"),),
        outputs=(Output(name="variable", dtype="float64", squeeze=True),),
    )
    return Animal(native, bundle, table.iloc[[0, 1, 2]].reset_index(drop=True))


def booleans(folder: Path) -> Animal:
    """Boolean columns; ONNX."""
    from mlflow.models import infer_signature
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.random((80, 3)) < 0.5, columns=["p", "q", "r"])
    model = DecisionTreeClassifier().fit(table, table.p ^ table.q)
    signature = infer_signature(table, model.predict(table))
    native = bundles.save_sklearn(model, folder / "booleans", signature)
    content = bundles.to_onnx(
        model, [("X", FloatTensorType([None, 3]))], folder / "booleans-onnx", options={"zipmap": False}
    )
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(Feed(name="X", dtype="float32", columns=("p", "q", "r"), shape=(-1, 3)),),
        outputs=(Output(name="label", dtype="bool"),),
    )
    return Animal(native, bundle, table.iloc[[0, 1, 2]].reset_index(drop=True))


def text(folder: Path) -> Animal:
    """One text column through TF-IDF; ONNX."""
    from mlflow.models import infer_signature
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = ["good film", "bad film", "good music", "bad sound", "fine good work", "awful bad work"] * 5
    table = pd.DataFrame({"text": words})
    target = [int("bad" not in line) for line in words]
    counter = CountVectorizer()
    model = make_pipeline(ColumnTransformer([("t", counter, "text")]), LogisticRegression())
    model.fit(table, target)
    signature = infer_signature(table, model.predict(table))
    native = bundles.save_sklearn(model, folder / "text", signature)
    fitted = model[0].named_transformers_["t"]
    content = bundles.to_onnx(
        model,
        [("text", StringTensorType([None, 1]))],
        folder / "text-onnx",
        # Without the locale the graph asks for en_US.UTF-8, which slim images do not have.
        options={id(model[-1]): {"zipmap": False}, id(fitted): {"locale": "C.UTF-8"}},
    )
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(
            Feed(name="text", dtype="str", columns=("text",), shape=(-1, 1), missing="", accepts="finite"),
        ),
        outputs=(Output(name="label", dtype="int64"),),
    )
    return Animal(native, bundle, table.iloc[[0, 1, 2]].reset_index(drop=True))


def multi_output(folder: Path) -> Animal:
    """Two targets: a list of two numbers per row; ONNX."""
    from mlflow.models import infer_signature
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(4)
    table = pd.DataFrame(rng.normal(size=(100, 3)), columns=["x", "y", "z"])
    model = LinearRegression().fit(table, np.column_stack([table.x * 2, table.y + table.z]))
    signature = infer_signature(table, model.predict(table))
    native = bundles.save_sklearn(model, folder / "multi", signature)
    content = bundles.to_onnx(model, [("X", FloatTensorType([None, 3]))], folder / "multi-onnx")
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(Feed(name="X", dtype="float32", columns=("x", "y", "z"), shape=(-1, 3), accepts="finite"),),
        outputs=(Output(name="variable", dtype="float64"),),
    )
    return Animal(native, bundle, table.iloc[[0, 1, 2]].reset_index(drop=True))


def tensors(folder: Path) -> Animal:
    """One unnamed tensor [-1, 30]; ONNX."""
    native, bundle = bundles.linear(folder)
    rng = np.random.default_rng(5)
    return Animal(native, bundle, tensors={"": rng.normal(size=(2, 30))})


def no_signature(folder: Path) -> Animal:
    """A model without signature; ONNX."""
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(6)
    matrix = rng.normal(size=(50, 3))
    model = LinearRegression().fit(matrix, matrix.sum(1))
    native = bundles.save_sklearn(model, folder / "bare", None)
    content = bundles.to_onnx(model, [("X", FloatTensorType([None, 3]))], folder / "bare-onnx")
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        None,
        feeds=(Feed(name="X", dtype="float32", tensor="", shape=(-1, 3), accepts="finite"),),
        outputs=(Output(name="variable", dtype="float64", squeeze=True),),
    )
    return Animal(native, bundle, tensors={"": matrix[:2]})


def two_towers(folder: Path) -> Animal:
    """Two named tensors, as a Keras model with several inputs has them; ONNX, answers with a dict."""
    import mlflow.pyfunc
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    class Towers(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints as a schema
            total = model_input["left"].sum(1) + 2 * model_input["right"].sum(1)
            return {"total": total, "twice": total * 2}

    signature = ModelSignature(
        inputs=Schema(
            [
                TensorSpec(np.dtype("float32"), (-1, 2), "left"),
                TensorSpec(np.dtype("float32"), (-1, 3), "right"),
            ]
        ),
        outputs=Schema(
            [TensorSpec(np.dtype("float32"), (-1,), "total"), TensorSpec(np.dtype("float32"), (-1,), "twice")]
        ),
    )
    native = bundles.save_python(Towers(), folder / "towers", signature)
    helper = onnx.helper
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])
    two = helper.make_tensor("two", onnx.TensorProto.FLOAT, [], [2.0])
    nodes = [
        helper.make_node("ReduceSum", ["left", "axes"], ["l"], keepdims=0),
        helper.make_node("ReduceSum", ["right", "axes"], ["r"], keepdims=0),
        helper.make_node("Mul", ["r", "two"], ["r2"]),
        helper.make_node("Add", ["l", "r2"], ["total"]),
        helper.make_node("Mul", ["total", "two"], ["twice"]),
    ]

    def value(name: str, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "towers",
        [value("left", ["n", 2]), value("right", ["n", 3])],
        [value("total", ["n"]), value("twice", ["n"])],
        [axes, two],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content = folder / "towers-onnx"
    content.mkdir()
    onnx.save(model, content / "model.onnx")
    bundle = bundles.onnx_bundle(
        folder / "store",
        content,
        signature,
        feeds=(
            Feed(name="left", dtype="float32", tensor="left", shape=(-1, 2)),
            Feed(name="right", dtype="float32", tensor="right", shape=(-1, 3)),
        ),
        outputs=(Output(name="total", dtype="float32"), Output(name="twice", dtype="float32")),
        answer="dict",
    )
    rng = np.random.default_rng(7)
    return Animal(native, bundle, tensors={"left": rng.normal(size=(2, 2)), "right": rng.normal(size=(2, 3))})


def _python(
    folder: Path, name: str, model: Any, inputs: Any, outputs: Any, params: Any = None
) -> tuple[Path, Bundle]:
    from mlflow.models import ModelSignature

    signature = ModelSignature(inputs=inputs, outputs=outputs, params=params)
    native = bundles.save_python(model, folder / name, signature)
    return native, bundles.pyfunc_bundle(folder / "store", native, signature)


def dates(folder: Path) -> Animal:
    """A datetime column; pyfunc with a DataFrame answer."""
    import mlflow.pyfunc
    from mlflow.types import ColSpec, Schema

    class Dates(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints as a schema
            when = model_input["when"]
            return pd.DataFrame({"year": when.dt.year, "next": when + pd.Timedelta(days=1)})

    inputs = Schema([ColSpec("datetime", "when"), ColSpec("double", "value")])
    outputs = Schema([ColSpec("long", "year"), ColSpec("datetime", "next")])
    native, bundle = _python(folder, "dates", Dates(), inputs, outputs)
    table = pd.DataFrame(
        {"when": pd.to_datetime(["2024-02-28 12:00", "1999-12-31 00:00"]), "value": [1.0, 2.0]}
    )
    return Animal(native, bundle, table)


def with_params(folder: Path) -> Animal:
    """Takes inference parameters; pyfunc that answers with a dict, NaN among it."""
    import mlflow.pyfunc
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    class Scaled(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints as a schema
            values = model_input["x"].to_numpy() * params["factor"]
            return {"scaled": np.append(values, np.nan), "name": params["name"]}

    params = ParamSchema([ParamSpec("factor", "double", 2.0), ParamSpec("name", "string", "a")])
    native, bundle = _python(
        folder, "params", Scaled(), Schema([ColSpec("double", "x")]), Schema([ColSpec("double")]), params
    )
    tried = [{"factor": 3.0}, {"factor": 3}, {"factor": "x"}, {"name": "b"}, {"nope": 1}, {}, None, [1]]
    return Animal(native, bundle, pd.DataFrame({"x": [1.5, -2.0]}), params=tried)


def raising(folder: Path) -> Animal:
    """Raises on negative numbers; pyfunc."""
    import mlflow.pyfunc
    from mlflow.types import ColSpec, Schema

    class Raising(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints as a schema
            if (model_input["secret"] < 0).any():
                raise ValueError(f"cannot take {model_input['secret'].tolist()}")
            return model_input["secret"].tolist()

    native, bundle = _python(
        folder, "raising", Raising(), Schema([ColSpec("double", "secret")]), Schema([ColSpec("double")])
    )
    return Animal(native, bundle, pd.DataFrame({"secret": [1234.5, 2.0]}))


def torch_model(folder: Path) -> Animal:
    """A torch module on one tensor; pyfunc."""
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    matrix = np.random.default_rng(8).normal(size=(3, 4)).astype("float32")
    with torch.no_grad():
        signature = infer_signature(matrix, model(torch.from_numpy(matrix)).numpy())
    path = folder / "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            model, path, signature=signature, pip_requirements=[], serialization_format="pickle"
        )
    return Animal(path, bundles.pyfunc_bundle(folder / "store", path, signature), tensors={"": matrix})


ZOO: dict[str, Callable[[Path], Animal]] = {
    "doubles": doubles,
    "probabilities": probabilities,
    "mixed": mixed,
    "optional": optional,
    "longs": longs,
    "booleans": booleans,
    "text": text,
    "multi_output": multi_output,
    "tensors": tensors,
    "no_signature": no_signature,
    "two_towers": two_towers,
    "dates": dates,
    "with_params": with_params,
    "raising": raising,
    "torch": torch_model,
}
