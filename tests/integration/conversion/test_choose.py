"""The choice of a servable: what is taken, what is refused, and what is said about it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from mlflow_deploy import errors
from mlflow_deploy.bundle import ModelSource, write_bundle
from mlflow_deploy.conversion import Validation, make_servable, sklearn_onnx
from mlflow_deploy.conversion.runners import open_runner
from tests.integration.conversion.cases import HIST, mixed, scaled
from tests.integration.conversion.conftest import SaveModel
from tests.integration.conversion.rows import TEXTS, cancer, flights, iris
from tests.integration.conversion.saving import in_two_processes


def test_labels_stay_labels_and_the_example_travels_along(save: SaveModel, work: Path) -> None:
    inputs, answers = iris()
    model = LogisticRegression(max_iter=500).fit(inputs, answers)

    conversion = make_servable(save(model, inputs), work)

    (output,) = conversion.servable.outputs
    assert (output.dtype, output.squeeze) == ("str", True)
    assert conversion.example is not None
    assert conversion.example["predictions"] == ["setosa"] * 20
    assert conversion.example["request"]["dataframe_split"]["columns"] == list(inputs.columns)
    assert conversion.signature is not None
    assert conversion.signature["inputs"][0] == {
        "type": "double",
        "name": "sepal length (cm)",
        "required": True,
    }
    assert conversion.signature["params"] is None
    (feed,) = conversion.servable.feeds
    assert feed.columns == tuple(inputs.columns)


def test_mixed_columns_are_fed_one_by_one(save: SaveModel, work: Path) -> None:
    inputs, answers = flights()
    conversion = make_servable(save(mixed(HIST(max_iter=5)).fit(inputs, answers), inputs), work)

    feeds = {feed.name: feed for feed in conversion.servable.feeds}
    assert list(feeds) == list(inputs.columns)
    assert all(feeds[name].dtype == "str" and feeds[name].missing for name in TEXTS)
    # The trees take missing numbers and, as scikit-learn does, no infinite ones.
    assert {feed.accepts for name, feed in feeds.items() if name not in TEXTS} <= {"nan", "all"}
    assert {feeds[name].accepts for name in TEXTS} == {"all"}
    assert conversion.servable.outputs[0].dtype == "bool"


def test_columns_in_which_the_native_model_refuses_missing_values_are_marked(
    save: SaveModel, work: Path
) -> None:
    inputs, answers = cancer()
    conversion = make_servable(save(scaled(LogisticRegression()).fit(inputs, answers), inputs), work)

    assert [feed.accepts for feed in conversion.servable.feeds] == ["finite"]
    assert conversion.parity is not None
    holes = next(item for item in conversion.parity.datasets if item.name == "missing values")
    assert (holes.rows, holes.refused > 0) == (0, True)


def test_an_unknown_category_is_an_error_where_it_is_one_natively(save: SaveModel, work: Path) -> None:
    inputs, answers = flights()
    encoder = OneHotEncoder(sparse_output=False)
    folder = save(mixed(LogisticRegression(), encoder, rest=False).fit(inputs, answers), inputs)

    conversion = make_servable(folder, work)

    runner = open_runner(conversion.servable, conversion.content)
    assert len(runner.run(inputs[:5])) == 5
    with pytest.raises(Exception, match="out of data bounds"):
        runner.run(inputs[:5].assign(origin="nowhere"))
    assert {feed.name: feed.accepts for feed in conversion.servable.feeds} == {
        "carrier": "all",
        "origin": "finite",
        "dest": "finite",
    }


def test_validation_rows_are_compared_and_scored(save: SaveModel, work: Path) -> None:
    inputs, answers = cancer()
    folder = save(scaled(LogisticRegression()).fit(inputs, answers), inputs)
    rows = inputs.assign(truth=answers)

    conversion = make_servable(folder, work, validation=Validation(rows, "truth", "test"))

    assert conversion.parity is not None
    validation = next(item for item in conversion.parity.datasets if item.name == "validation rows")
    assert validation.rows == len(rows)
    assert validation.metric == "accuracy"
    assert validation.native_metric == validation.served_metric
    assert validation.native_metric is not None
    assert validation.native_metric > 0.95


@pytest.mark.parametrize(
    ("validation", "why"),
    [
        (Validation(pd.DataFrame({"other": [1.0]}), None, "test"), "column 'mean radius'"),
        (Validation(pd.DataFrame(), None, "test", problem="the disk is gone"), "the disk is gone"),
    ],
)
def test_validation_rows_that_cannot_be_used_are_reported(
    validation: Validation, why: str, save: SaveModel, work: Path
) -> None:
    inputs, answers = cancer()
    folder = save(scaled(LogisticRegression()).fit(inputs, answers), inputs)

    conversion = make_servable(folder, work, validation=validation)

    assert conversion.parity is not None
    assert any(why in note for note in conversion.parity.notes)
    assert any(why in note for note in conversion.notes)


def test_a_model_without_example_is_compared_on_invented_rows(save: SaveModel, work: Path) -> None:
    inputs, answers = flights()
    folder = save(mixed(HIST(max_iter=5)).fit(inputs, answers), inputs, input_example=None)

    conversion = make_servable(folder, work)

    assert conversion.servable.kind == "onnx"
    assert conversion.example is None
    assert conversion.parity is not None
    assert conversion.parity.datasets[0].name == "rows invented from the signature"
    assert any("invented" in note for note in conversion.parity.notes)


def test_a_model_without_signature_stays_pyfunc(save: SaveModel, work: Path) -> None:
    inputs, answers = cancer()
    model = scaled(LogisticRegression()).fit(inputs, answers)
    folder = save(model, inputs, input_example=None, signature=False)

    conversion = make_servable(folder, work)

    assert conversion.servable.kind == "pyfunc"
    assert "signature" in conversion.fallback
    assert conversion.signature is None


def test_pyfunc_on_request_keeps_the_model_folder(save: SaveModel, work: Path) -> None:
    inputs, answers = cancer()
    folder = save(scaled(LogisticRegression()).fit(inputs, answers), inputs)

    conversion = make_servable(folder, work, format="pyfunc")

    assert (conversion.servable.kind, conversion.servable.path) == ("pyfunc", "servable")
    assert conversion.content == folder
    assert (conversion.fallback, conversion.rejected, conversion.parity) == ("", {}, None)
    assert conversion.servable.requirements
    assert conversion.example is not None


def doubler() -> mlflow.pyfunc.PythonModel:
    """A model that only Python can run."""
    with warnings.catch_warnings():
        # MLflow inspects the class when it is defined and asks for type hints.
        warnings.filterwarnings("ignore", message=".*type hint.*")

        class Doubler(mlflow.pyfunc.PythonModel):
            def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
                return model_input * 2

        return Doubler()


@pytest.mark.filterwarnings("ignore:.*Add type hints")
def test_a_flavor_without_converter_stays_pyfunc(tmp_path: Path, work: Path) -> None:
    folder = tmp_path / "model"
    rows = pd.DataFrame({"x": [1.0, 2.0]})
    mlflow.pyfunc.save_model(
        str(folder), python_model=doubler(), input_example=rows, pip_requirements=["pandas"]
    )

    conversion = make_servable(folder, work)

    assert conversion.servable.kind == "pyfunc"
    assert "no conversion from mlflow.pyfunc.model" in conversion.fallback
    assert conversion.example is not None
    assert conversion.example["predictions"] == [{"x": 2.0}, {"x": 4.0}]
    with pytest.raises(errors.UnsupportedConversion, match="no conversion"):
        make_servable(folder, work, format="onnx")


def test_insisting_on_onnx_names_the_missing_converter(save: SaveModel, work: Path) -> None:
    inputs, answers = cancer()
    folder = save(DummyClassifier().fit(inputs, answers), inputs)

    with pytest.raises(errors.UnsupportedConversion, match=r"no converter for sklearn\.dummy"):
        make_servable(folder, work, format="onnx")


def test_a_converter_without_the_capability_is_not_asked(
    save: SaveModel, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, answers = flights()
    folder = save(mixed(HIST(max_iter=5)).fit(inputs, answers), inputs)
    monkeypatch.setattr(sklearn_onnx, "CAPABILITIES", frozenset())

    assert "cannot take text inputs" in make_servable(folder, work).fallback


def test_a_model_in_skops_form_is_converted(save: SaveModel, work: Path) -> None:
    inputs, answers = flights()
    model = mixed(HIST(max_iter=5)).fit(inputs, answers)
    trusted = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor", "numpy.dtype"]

    folder = save(model, inputs, serialization_format="skops", skops_trusted_types=trusted)

    assert (folder / "model.skops").is_file()
    assert make_servable(folder, work).servable.kind == "onnx"


def test_an_unknown_format_is_refused_with_the_nearest(save: SaveModel, work: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="did you mean 'onnx'"):
        make_servable(tmp_path, work, format="onx")


def test_a_model_whose_library_is_missing_stays_pyfunc(save: SaveModel, work: Path) -> None:
    inputs, answers = cancer()
    folder = save(scaled(LogisticRegression()).fit(inputs, answers), inputs)
    file = folder / "MLmodel"
    file.write_text(
        file.read_text().replace("loader_module: mlflow.sklearn", "loader_module: no_such_library")
    )

    conversion = make_servable(folder, work)

    assert conversion.servable.kind == "pyfunc"
    assert "no_such_library, which is not installed" in conversion.fallback
    with pytest.raises(errors.UnsupportedConversion, match="no_such_library"):
        make_servable(folder, work, format="onnx")


@pytest.mark.parametrize("damage", ["empty folder", "no MLmodel", "garbage in MLmodel", "truncated model"])
def test_a_damaged_model_folder_is_refused(damage: str, save: SaveModel, work: Path) -> None:
    inputs, answers = cancer()
    folder = save(scaled(LogisticRegression()).fit(inputs, answers), inputs)
    if damage == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "no MLmodel":
        (folder / "MLmodel").unlink()
    elif damage == "garbage in MLmodel":
        (folder / "MLmodel").write_bytes(b"\x00{{{: ]")
    else:
        content = (folder / "model.pkl").read_bytes()
        (folder / "model.pkl").write_bytes(content[: len(content) // 2])

    with pytest.raises(errors.ModelCorrupt):
        make_servable(folder, work)
    assert list(work.iterdir()) == []


SCRIPT = """
import sys
import warnings
from pathlib import Path
from mlflow_deploy.bundle import ModelSource, write_bundle
from mlflow_deploy.conversion import make_servable
work, model = Path(sys.argv[1]), Path(sys.argv[2])
work.mkdir()
made = make_servable(model, work)
documents = {"parity.json": made.parity.to_dict(), "example.json": made.example}
print(write_bundle(work / "store", model=ModelSource(uri="m"), servable=made.servable, content=made.content,
                   documents=documents).digest)
"""


@pytest.mark.slow
def test_the_same_model_gives_the_same_digest(save: SaveModel, work: Path) -> None:
    inputs, answers = flights()
    folder = save(mixed(HIST(max_iter=5)).fit(inputs, answers), inputs)

    digests = {text.strip() for text in in_two_processes(SCRIPT, work, folder)}

    assert len(digests) == 1
    assert digests.pop().startswith("sha256-")


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import sys, mlflow_deploy.conversion; print(*sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"onnx", "onnxruntime", "skl2onnx", "sklearn", "pandas", "mlflow"}.intersection(modules)


def test_the_example_is_what_the_servable_answers(save: SaveModel, work: Path) -> None:
    inputs, answers = flights()
    folder = save(mixed(HIST(max_iter=5)).fit(inputs, answers), inputs, "predict_proba")

    conversion = make_servable(folder, work)

    assert conversion.example is not None
    split = conversion.example["request"]["dataframe_split"]
    rows = pd.DataFrame(split["data"], columns=split["columns"])
    served = open_runner(conversion.servable, conversion.content).run(rows)
    assert np.allclose(served.array, conversion.example["predictions"], atol=1e-6)


def test_a_bundle_can_be_written_from_a_conversion(save: SaveModel, work: Path) -> None:
    inputs, answers = flights()
    folder = save(mixed(HIST(max_iter=5)).fit(inputs, answers), inputs)
    made = make_servable(folder, work)
    assert made.parity is not None

    bundle = write_bundle(
        work / "store",
        model=ModelSource(uri="models:/m/1"),
        servable=made.servable,
        content=made.content,
        documents={"parity.json": made.parity.to_dict(), "example.json": made.example},
    )

    assert bundle.servable_path.is_file()
    document = bundle.document("parity.json")
    assert document is not None
    assert document["passed"] is True
