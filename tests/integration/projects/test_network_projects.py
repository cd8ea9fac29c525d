"""digits-torch and wine-keras: all that is made of a network, by the projects and by the command line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner

from mlflow_deploy.bundle import read_bundle
from mlflow_deploy.cli import group
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.flavors import tflite
from mlflow_deploy.flavors.lineage import CHANGE, PARENT
from tests.conftest import ROOT, load_project

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

MODULES = ("data", "net", "train", "pipeline")


@contextlib.contextmanager
def project(name: str) -> Iterator[dict[str, Any]]:
    """The modules of a project; all projects name theirs alike, so none is left behind."""
    before = {module: sys.modules.pop(module) for module in MODULES if module in sys.modules}
    wanted = [module for module in MODULES if (ROOT / "projects" / name / f"{module}.py").exists()]
    with pytest.MonkeyPatch.context() as patch:
        # Modules of a network are imported again when its model is loaded.
        patch.syspath_prepend(str(ROOT / "projects" / name))
        try:
            yield load_project(name, *wanted)
        finally:
            for module in MODULES:
                sys.modules.pop(module, None)
            sys.modules.update(before)


@pytest.fixture(scope="module")
def digits(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path, str]]:
    """What the project made, a file of rows to train on, and the URI of an untrained small network."""
    import torch

    folder = tmp_path_factory.mktemp("digits")
    with project("digits_torch") as modules:
        made = modules["pipeline"].run(epochs=4, registered_model_name="digits-test")
        data = modules["data"].load()
        rows = data.table().iloc[:0]
        rows = rows.reindex(range(len(data.train)))
        rows[rows.columns[:-1]] = data.train.reshape(len(data.train), -1)
        rows[rows.columns[-1]] = data.train_labels
        rows.to_parquet(folder / "train.parquet", index=False)
        torch.manual_seed(1)
        student = mlflow.pytorch.log_model(
            modules["net"].Net(channels=4, hidden=32),
            name="untrained",
            signature=mlflow.models.get_model_info(made.trained.model_uri).signature,
            code_paths=[str(ROOT / "projects/digits_torch/net.py")],
            pip_requirements=["torch"],
            serialization_format="pickle",
        )
        yield made, folder / "train.parquet", student.model_uri


@pytest.fixture(scope="module")
def wines(tracking: str) -> Iterator[Any]:
    """What the project made, of which version 1 is registered as `wine-test`."""
    with project("wine_keras") as modules:
        yield modules["pipeline"].run(epochs=30, registered_model_name="wine-test")


def tags(uri: str) -> dict[str, str]:
    """The tags of a logged model."""
    found: dict[str, str] = mlflow.get_logged_model(uri.removeprefix("models:/")).tags
    return found


def parents(*uris: str) -> set[str]:
    """The parents that logged models name."""
    return {tags(uri)[PARENT] for uri in uris}


def run(*arguments: str) -> Any:
    """Run `mlflow-deploy` in this process and read the JSON that it prints."""
    done = CliRunner().invoke(group, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# --- digits ------------------------------------------------------------------------------------------------


def test_digits_become_small_in_four_ways(digits: tuple[Any, Path, str]) -> None:
    made, _, _ = digits
    assert made.trained.accuracy > 0.93
    trained = made.trained.model_uri
    smaller = (made.int8, made.pruned, made.student)
    assert parents(made.torchscript_uri, *(each.model_uri for each in smaller)) == {trained}
    for each, least in zip(smaller, (2.5, 3.0, 5.0), strict=True):
        table = each.comparison
        assert table.before.bytes / table.after.bytes > least, table.to_markdown()
        assert table.after.metrics["accuracy"] > table.before.metrics["accuracy"] - 0.1
    used = mlflow.get_run(made.pruned.run_id)
    assert trained.removeprefix("models:/") in {each.model_id for each in used.inputs.model_inputs}
    text = mlflow.artifacts.load_text(f"runs:/{used.info.run_id}/optimisation/pruned/comparison.md")
    assert "latency at 64 rows" in text
    again = mlflow.pyfunc.load_model(made.pruned.model_uri)
    assert again.predict(again.input_example).shape == (2, 10)


def test_command_line_prunes_and_shows_both(digits: tuple[Any, Path, str]) -> None:
    made, train, _ = digits
    uri = made.trained.model_uri
    command = [str(Path(sys.executable).parent / "mlflow-deploy"), "optimise", "prune", uri]
    command += ["--ratio", "0.5", "--train", str(train), "--epochs", "1", "--register", "digits-narrow"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    table = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    for line in ("size", "parameters", "latency at 1 row", "latency at 64 rows", "accuracy"):
        assert any(name.startswith(line) for name in table), done.stdout
    [logged] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Logged: ")]
    assert f"Logged: {logged} version 1" in done.stdout
    found = tags(logged.rstrip(","))
    assert found[PARENT] == uri
    assert "prun" in found[CHANGE]
    narrow = mlflow.pytorch.load_model("models:/digits-narrow/1")
    assert [layer.out_channels for layer in narrow.features if hasattr(layer, "out_channels")] == [8, 16]


def test_command_line_distills(digits: tuple[Any, Path, str]) -> None:
    made, train, student = digits
    teacher = made.trained.model_uri
    told = run("optimise", "distill", teacher, student, "--train", str(train), "--epochs", "4")
    assert told["parent"] == teacher
    assert tags(told["model_uri"])[PARENT] == teacher
    before, after = told["comparison"]["before"], told["comparison"]["after"]
    assert before["parameters"] > 5 * after["parameters"]
    assert after["metrics"]["accuracy"] > before["metrics"]["accuracy"] - 0.15
    assert told["losses"][-1] < told["losses"][0]
    logged = json.loads(
        mlflow.artifacts.load_text(f"runs:/{told['run_id']}/optimisation/student/comparison.json")
    )
    assert logged["after"]["metrics"] == after["metrics"]


# --- wines -------------------------------------------------------------------------------------------------


def test_wines_take_every_form_of_keras(wines: Any) -> None:
    assert wines.trained.accuracy > 0.9
    uris = (*wines.forms.values(), wines.int8.model_uri, wines.pruned.model_uri)
    assert set(wines.forms) == {"savedmodel", "onnx", "tflite"}
    assert parents(*uris) == {wines.trained.model_uri}
    assert wines.int8.comparison.after.metrics["accuracy"] > 0.9
    assert wines.pruned.comparison.before.parameters > 2 * wines.pruned.comparison.after.parameters


def weights(path: Path) -> set[str]:
    """The types of the matrices in a TFLite file."""
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(model_path=str(path)).get_tensor_details()
    return {np.dtype(item["dtype"]).name for item in details if len(item["shape"]) == 2 and item["name"]}


def test_command_line_makes_tflite_in_every_precision(wines: Any, tmp_path: Path) -> None:
    made = {
        precision: run(
            "convert", "models:/wine-test/1", "--to", "tflite", "--precision", precision,
            "-o", str(tmp_path / precision),
        )
        for precision in ("fp16", "int8", "auto")
    }  # fmt: skip
    files = {precision: read_bundle(Path(told["bundle"])).servable_path for precision, told in made.items()}
    assert "float16" in weights(files["fp16"])
    assert "int8" in weights(files["int8"])
    assert (made["fp16"]["precision"], made["int8"]["precision"]) == ("fp16", "int8")
    assert all(told["parity"]["passed"] and told["format"] == "tflite" for told in made.values())
    # What was tried is either measured or refused with the reason.
    said = " ".join(made["auto"]["notes"])
    print(made["int8"]["parity"]["variant"], said)
    assert all(name in said for name in ("int8 full", "int8 dynamic", "fp16", "float32")), said


def test_flavor_saves_tflite_in_lower_precision(wines: Any, tmp_path: Path) -> None:
    uri = wines.trained.model_uri
    tflite.save_model(uri, tmp_path / "model", precision="int8")
    section = mlflow.models.get_model_info(str(tmp_path / "model")).flavors[tflite.FLAVOR_NAME]
    assert section["precision"] == "int8"
    file = tmp_path / "model/forms/tflite/servable/model.tflite"
    assert "int8" in weights(file)
    native, small = mlflow.pyfunc.load_model(uri), mlflow.pyfunc.load_model(str(tmp_path / "model"))
    rows = native.input_example
    agreement = np.mean(native.predict(rows).argmax(axis=1) == small.predict(rows).argmax(axis=1))
    assert agreement >= 0.98
    with pytest.raises(ConfigError, match="keeps its precision"):
        tflite.save_model(file, tmp_path / "again", precision="fp16", input_example=rows)
