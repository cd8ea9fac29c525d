"""MLflow flavor for PMML documents: served by a PMML evaluator without the framework that trained the model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConversionError
from mlflow_deploy.flavors import base
from mlflow_deploy.flavors.base import Form, LogOptions, Port, SaveOptions
from mlflow_deploy.flavors.pyfunc import FormModel, load_pyfunc

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

    from mlflow_deploy.serving.values import Array

FLAVOR_NAME = "mlflow_deploy.pmml"

_TYPES = {"double": "float64", "float": "float32", "integer": "int64", "boolean": "bool", "string": "str"}


def save_model(model: Any, path: str | Path, **options: Unpack[SaveOptions]) -> None:
    """Save a PMML model in MLflow's format.

    Args:
        model: the path of a .pmml file; or a model to be converted: a scikit-learn model with
            `input_example`, or the URI or folder of an MLflow model.
        path: where to; must not exist or be empty.
        options: MLflow's own: `input_example`, `signature`, `pip_requirements`, `metadata`...

    Raises:
        ConversionError: the model cannot be converted, or its inputs do not fit the signature.
    """
    base.save(FORM, model, path, options)


def log_model(model: Any, **options: Unpack[LogOptions]) -> ModelInfo:
    """Log a PMML model to MLflow; arguments as of `save_model`, `name`, `registered_model_name`..."""
    return base.log(sys.modules[__name__], model, options)


def load_model(model_uri: str | Path, dst_path: str | None = None) -> Any:
    """The loaded servable of the scoring server, whose `run` evaluates the document."""
    return _open(base.load_form(model_uri, FORM.name, dst_path))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> FormModel:
    return load_pyfunc(path, model_config)


def get_default_pip_requirements() -> list[str]:
    """What models of this flavor need: this package and a PMML evaluator."""
    return base.default_requirements(FORM)


def get_default_conda_env() -> dict[str, Any]:
    """The conda environment with these requirements."""
    return base.default_conda_env(FORM)


# --- the form ----------------------------------------------------------------------------------------------


def _takes(model: Any) -> bool:
    return isinstance(model, str | Path) and Path(model).suffix == ".pmml"


def _write(model: Any, path: Path) -> None:
    path.write_bytes(Path(model).read_bytes())


def _document(path: Path) -> Any:
    """The root element; documents with a DTD, which could expand without bounds or read files, are refused."""
    import xml.etree.ElementTree as ET

    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ConversionError("The PMML document has a DTD", why="PMML needs none, and it could name files")
    try:
        root = ET.fromstring(content)  # noqa: S314 - without DTD there are no entities to expand
    except ET.ParseError as error:
        raise ConversionError("The PMML document is no XML", why=str(error)) from error
    if _tag(root) != "PMML":
        raise ConversionError("The document is no PMML", why=f"its root is {_tag(root)}")
    return root


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _model(root: Any) -> Any:
    """The model element, the only one with a mining schema at the top."""
    for element in root:
        if any(_tag(child) == "MiningSchema" for child in element):
            return element
    raise ConversionError("The PMML document has no model")


def _children(element: Any, tag: str) -> list[Any]:
    return [child for child in element if _tag(child) == tag]


def _types(root: Any) -> dict[str, str]:
    fields = [field for part in _children(root, "DataDictionary") for field in _children(part, "DataField")]
    return {field.get("name"): _TYPES.get(field.get("dataType"), "str") for field in fields}


def _inputs(path: Path) -> Sequence[Port]:
    root = _document(path)
    types = _types(root)
    fields = _children(_children(_model(root), "MiningSchema")[0], "MiningField")
    active = [field.get("name") for field in fields if field.get("usageType", "active") == "active"]
    return [Port(name, types[name], (-1, 1)) for name in active]


def _outputs(path: Path, _: Mapping[str, Array] | None) -> Sequence[Port]:
    root = _document(path)
    types, model = _types(root), _model(root)
    fields = _children(_children(model, "MiningSchema")[0], "MiningField")
    targets = [field.get("name") for field in fields if field.get("usageType") in ("target", "predicted")]
    named = [field for part in _children(model, "Output") for field in _children(part, "OutputField")]
    return [
        *(Port(name, types[name], (-1,)) for name in targets),
        *(Port(field.get("name"), _TYPES.get(field.get("dataType"), "float64"), (-1,)) for field in named),
    ]


def _open(bundle: Bundle) -> Any:
    from mlflow_deploy.serving.backends.pmml import load
    from mlflow_deploy.settings import ServingSettings

    return load(bundle, ServingSettings())


FORM = Form(
    name="pmml",
    file="model.pmml",
    extra="pmml",
    packages=("jpmml-evaluator", "jpype1", "pandas"),
    requirements=("jpmml-evaluator[jpype]>=0.16", "pandas"),
    takes=_takes,
    write=_write,
    inputs=_inputs,
    outputs=_outputs,
    open=_open,
)
