"""The projects digits-torch and wine-keras: everything that is made of a network, with its lineage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest

from mlflow_deploy.flavors.lineage import PARENT
from tests.conftest import ROOT, load_project

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

MODULES = ("data", "net", "train", "pipeline")


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Loads the pipeline of a project; all projects name their modules alike, so none is left behind."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}

    def load(name: str) -> Any:
        # Modules of a network are imported again when its model is loaded.
        monkeypatch.syspath_prepend(str(ROOT / "projects" / name))
        return load_project(name, "pipeline")["pipeline"]

    yield load
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def parents(*uris: str) -> set[str]:
    """The parents that logged models name."""
    return {mlflow.get_logged_model(uri.removeprefix("models:/")).tags[PARENT] for uri in uris}


def test_digits_become_small_in_four_ways(project: Any, tracking: str) -> None:
    made = project("digits_torch").run(epochs=4, registered_model_name="digits-test")
    assert made.trained.accuracy > 0.93
    trained = made.trained.model_uri
    smaller = (made.int8, made.pruned, made.student)
    assert parents(made.torchscript_uri, *(each.model_uri for each in smaller)) == {trained}
    for each, least in zip(smaller, (2.5, 3.0, 5.0), strict=True):
        table = each.comparison
        assert table.before.bytes / table.after.bytes > least, table.to_markdown()
        assert table.after.metrics["accuracy"] > table.before.metrics["accuracy"] - 0.1
    run = mlflow.get_run(made.pruned.run_id)
    assert trained.removeprefix("models:/") in {used.model_id for used in run.inputs.model_inputs}
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/optimisation/pruned/comparison.md")
    assert "latency at 64 rows" in text
    again = mlflow.pyfunc.load_model(made.pruned.model_uri)
    assert again.predict(again.input_example).shape == (2, 10)


def test_wines_take_every_form_of_keras(project: Any, tracking: str) -> None:
    made = project("wine_keras").run(epochs=30, registered_model_name="wine-test")
    assert made.trained.accuracy > 0.9
    uris = (*made.forms.values(), made.int8.model_uri, made.pruned.model_uri)
    assert set(made.forms) == {"savedmodel", "onnx", "tflite"}
    assert parents(*uris) == {made.trained.model_uri}
    assert made.int8.comparison.after.metrics["accuracy"] > 0.9
    assert made.pruned.comparison.before.parameters > 2 * made.pruned.comparison.after.parameters
