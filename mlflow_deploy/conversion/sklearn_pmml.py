"""scikit-learn to PMML with sklearn2pmml: a form for exchange, which needs Java to be made and to be run."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.base
from sklearn2pmml import make_pmml_pipeline, sklearn2pmml

from mlflow_deploy.bundle import SERVABLE, Feed, Output, Servable
from mlflow_deploy.conversion import sklearn_walk as walk
from mlflow_deploy.conversion.answers import Answer
from mlflow_deploy.conversion.base import Candidate, Capability
from mlflow_deploy.conversion.native import NUMERIC, NativeModel
from mlflow_deploy.pmml_evaluator import SEPARATOR, PmmlEvaluator

CAPABILITIES = frozenset({Capability.TEXT})

FILE = "model.pmml"

_NEWEST = "1.9.0"
"""The newest scikit-learn that sklearn2pmml 0.133 takes; 1.9.1 stores its models the same way."""

_TARGET = "answer"

_METHODS = ("predict", "predict_proba")


def refuse(native: NativeModel) -> str:
    """Why this model cannot be converted, or the empty string."""
    if shutil.which("java") is None:
        return (
            "PMML is written and read by Java, and no Java was found on this machine; install a Java runtime"
        )
    if native.predict_fn not in _METHODS:
        return f"the answer of {native.predict_fn} has no PMML form"
    if not native.columns:
        return "PMML needs named columns; log the model with a DataFrame as input_example="
    for column in native.columns:
        if column.type not in (*NUMERIC, "string"):
            return f"column {column.name!r} has type {column.type}, which the PMML form cannot take"
    for part in walk.parts(native.raw()):
        if type(part).__name__ == "FunctionTransformer" and part.func is not None:
            return "FunctionTransformer runs a Python function, which has no PMML form"
    return ""


def hints(native: NativeModel) -> Mapping[str | int, tuple[Any, ...]]:
    """Values per column at which the model is known to change: categories, thresholds, centres."""
    return walk.known_values(native.raw(), [column.name for column in native.columns])


def candidates(native: NativeModel, answer: Answer) -> Iterator[Candidate]:
    """The one candidate."""
    array = answer.array
    dtype = "str" if array.dtype.kind in "OUS" else array.dtype.name
    probe = None
    if native.probabilities() is not None:
        probe = partial(_build, native, "predict_proba", "float64")
    yield Candidate(label="java", build=partial(_build, native, native.predict_fn, dtype), probe=probe)


def _build(native: NativeModel, method: str, dtype: str, folder: Path) -> Servable:
    model = native.raw()
    fields = [column.name for column in native.columns]
    pipeline = make_pmml_pipeline(model, active_fields=fields, target_fields=[_TARGET])
    path = folder / FILE
    # It prints what Java says, and advice; that would stand in the output of a command, and holds the cause.
    printed = io.StringIO()
    with _supported_version(), contextlib.redirect_stdout(printed):
        try:
            sklearn2pmml(pipeline, str(path))
        except RuntimeError as error:
            raise NotImplementedError(_cause(f"{printed.getvalue()}\n{error}")) from error
    path.write_text(_canonical(path.read_text(encoding="utf-8")), encoding="utf-8")
    if method == "predict_proba":
        name = SEPARATOR.join(f"probability({_shown(label)})" for label in model.classes_)
    else:
        name = _TARGET
    return Servable(
        kind="pmml",
        path=f"{SERVABLE}/{FILE}",
        feeds=tuple(_feed(column.name, column.type) for column in native.columns),
        outputs=(Output(name=name, dtype=dtype),),
        requirements=("jpmml-evaluator>=0.16", "pandas"),
    )


def open_graph(servable: Servable, content: Path) -> PmmlEvaluator:
    """The evaluator of a PMML servable, to compare with the native model."""
    return PmmlEvaluator(content / Path(servable.path).name, [output.name for output in servable.outputs])


def _feed(name: str, kind: str) -> Feed:
    if kind == "string":
        return Feed(name=name, dtype="str", columns=(name,), missing="")
    return Feed(name=name, dtype="int64" if kind in ("long", "integer") else "float64", columns=(name,))


def _shown(label: Any) -> str:
    """A class as PMML writes it in the name of its probability."""
    value = label.item() if isinstance(label, np.generic) else label
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def _supported_version() -> Iterator[None]:
    """Have a patch release of scikit-learn write itself down as the one before, which the converter knows."""
    real = sklearn.base.__version__
    newer = tuple(int(part) for part in re.findall(r"\d+", real)[:3])
    newest = tuple(int(part) for part in _NEWEST.split("."))
    if newer[:2] == newest[:2] and newer > newest:
        sklearn.base.__version__ = _NEWEST
    try:
        yield
    finally:
        sklearn.base.__version__ = real


def _canonical(text: str) -> str:
    """The document without the time at which it was made."""
    return re.sub(r"\s*<Timestamp>.*?</Timestamp>", "", text, count=1)


def _cause(text: str) -> str:
    """The line of the converter's output that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(Exception|Caused by|SEVERE|java\.|[\w.]+Exception)", line)]
    return (told or lines or ["sklearn2pmml failed without saying why"])[-1][:300]
