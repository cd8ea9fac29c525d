"""A form beside the native model: used with its proof, and not when anything was changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import get_model_info
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression

from mlflow_deploy.conversion import Tolerance, make_servable
from mlflow_deploy.errors import ConfigError, ModelNotFound, UnsupportedConversion
from mlflow_deploy.flavors import add_flavor
from mlflow_deploy.flavors import onnx as onnx_flavor


@pytest.fixture(scope="module")
def rows() -> Any:
    return load_wine(as_frame=True).data


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Path:
    """A native model with an ONNX form beside it."""
    folder = tmp_path_factory.mktemp("added") / "model"
    labels = load_wine().target
    model = LogisticRegression(max_iter=5000).fit(rows, labels)
    mlflow.sklearn.save_model(
        model,
        str(folder),
        input_example=rows.head(3),
        pip_requirements=["scikit-learn"],
        serialization_format="skops",
    )
    added = add_flavor(folder, "onnx")
    assert added.parity is not None
    assert added.parity.passed
    assert added.uri == str(folder)
    return folder


@pytest.fixture
def copy(native: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(native, tmp_path / "copy"))


def converted(folder: Path, work: Path, **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    work.mkdir(exist_ok=True)
    return make_servable(folder, work, progress=said.append, **options), said


def test_native_stays_what_answers(native: Path, rows: Any) -> None:
    info = get_model_info(str(native))
    assert info.flavors["python_function"]["loader_module"] == "mlflow.sklearn"
    assert {"sklearn", "mlflow_deploy.onnx"} <= info.flavors.keys()
    answer = mlflow.pyfunc.load_model(str(native)).predict(rows)
    session = onnx_flavor.load_model(native)
    found = session.run(None, {session.get_inputs()[0].name: rows.to_numpy(dtype=np.float32)})
    np.testing.assert_array_equal(np.asarray(found[0]).ravel(), answer)


@pytest.mark.parametrize("format", ["auto", "onnx"])
def test_form_is_taken_with_its_proof_and_nothing_is_converted(
    native: Path, tmp_path: Path, format: str
) -> None:
    done, said = converted(native, tmp_path, format=format)
    assert said == ["using the onnx form that the model holds"]
    assert done.content == native / "forms/onnx/servable"
    assert done.parity is not None
    assert done.parity.passed
    assert done.example is not None
    assert done.signature is not None
    assert not any(tmp_path.iterdir())


def test_pyfunc_is_still_the_native_model(native: Path, tmp_path: Path) -> None:
    done, _ = converted(native, tmp_path, format="pyfunc")
    assert done.servable.kind == "pyfunc"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("forms/onnx/servable/model.onnx", "was changed"),
        ("forms/onnx/parity.json", "was changed"),
        ("model.skops", "made from another model"),
    ],
)
def test_what_was_changed_is_converted_again_and_said(
    copy: Path, tmp_path: Path, change: str, why: str
) -> None:
    with (copy / change).open("ab") as file:
        file.write(b"\0" * 22)
    done, _ = converted(copy, tmp_path / "work", format="onnx")
    assert done.content.is_relative_to(tmp_path / "work")
    assert any("the onnx form stored in the model is not used" in note and why in note for note in done.notes)


def test_another_tolerance_is_proven_anew(native: Path, tmp_path: Path) -> None:
    done, _ = converted(native, tmp_path, format="onnx", tolerance=Tolerance(rtol=1e-3))
    assert done.parity is not None
    assert done.parity.tolerance == Tolerance(rtol=1e-3)
    assert any("proven with another tolerance" in note for note in done.notes)


def test_adding_again_replaces(copy: Path) -> None:
    before = get_model_info(str(copy)).flavors["mlflow_deploy.onnx"]["digest"]
    add_flavor(copy, "onnx")
    assert get_model_info(str(copy)).flavors["mlflow_deploy.onnx"]["digest"] == before


def test_form_that_cannot_be_leaves_the_folder_as_it_was(copy: Path) -> None:
    shutil.rmtree(copy / "forms")
    meta = (copy / "MLmodel").read_text()
    meta = meta.replace("mlflow_deploy.onnx", "someone.else")
    (copy / "MLmodel").write_text(meta)
    with pytest.raises(UnsupportedConversion):
        add_flavor(copy, "tflite")
    assert (copy / "MLmodel").read_text() == meta
    assert not (copy / "forms").exists()


def test_unknown_names_are_refused(copy: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        add_flavor(copy, "onxx")
    with pytest.raises(ModelNotFound):
        add_flavor(copy / "nowhere", "onnx")


def test_uri_makes_a_new_model_with_its_lineage(native: Path, rows: Any, tracking: str) -> None:
    with mlflow.start_run():
        first = mlflow.sklearn.log_model(
            mlflow.sklearn.load_model(str(native)),
            name="wine",
            input_example=rows.head(3),
            pip_requirements=["scikit-learn"],
            serialization_format="skops",
        )
    with mlflow.start_run() as run:
        added = add_flavor(first.model_uri, "onnx", registered_model_name="added-wine")
    assert added.info is not None
    assert added.uri == f"models:/{added.info.model_id}"
    logged = mlflow.MlflowClient().get_logged_model(added.info.model_id)
    assert logged.name == "wine"
    assert logged.tags["mlflow_deploy.parent"] == first.model_uri
    assert logged.tags["mlflow_deploy.change"] == "add onnx"
    inputs = mlflow.get_run(run.info.run_id).inputs.model_inputs
    assert [item.model_id for item in inputs] == [first.model_id]
    assert {"sklearn", "mlflow_deploy.onnx"} <= get_model_info("models:/added-wine/1").flavors.keys()
    downloaded = Path(mlflow.artifacts.download_artifacts("models:/added-wine/1"))
    done, said = converted(downloaded, downloaded.parent / "work", format="onnx")
    assert said == ["using the onnx form that the model holds"]
    assert done.notes == ()
