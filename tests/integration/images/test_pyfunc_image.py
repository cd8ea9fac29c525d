"""Real images of MLflow models with their own requirements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import layout
from mlflow_deploy.images.builder import BuiltImage
from tests.integration.images.bundles import keras_model, pins, torch_model
from tests.integration.images.conftest import build
from tests.integration.images.running import started


@pytest.mark.slow
@pytest.mark.parametrize("user", [None, "54321:0"])
def test_a_scikit_learn_pipeline_answers(
    engine: Any, pyfunc_image: BuiltImage, pyfunc_bundle: Bundle, user: str | None
) -> None:
    with started(engine, pyfunc_image.name, user=user) as running:
        print(f"ready after {running.ready_seconds:.1f} s")
        running.answers_its_example(pyfunc_bundle)


@pytest.mark.slow
def test_it_has_the_models_versions_and_a_slim_mlflow(pyfunc_image: BuiltImage) -> None:
    versions = {each["name"]: each.get("version") for each in pyfunc_image.sbom["components"]}
    for line in pins("scikit-learn", "numpy", "pandas"):
        name, _, version = line.partition("==")
        assert versions[name] == version
    assert "mlflow-skinny" in versions
    assert "mlflow" not in versions


@pytest.mark.slow
def test_a_torch_model_answers_on_the_same_runtime(
    engine: Any, pyfunc_image: BuiltImage, tmp_path: Path
) -> None:
    bundle = torch_model(tmp_path)
    built = build(bundle)
    assert built.runtime_reused
    with started(engine, built.name, user="54321:0") as running:
        print(f"ready after {running.ready_seconds:.1f} s")
        running.answers_its_example(bundle)
        code = "import torch; print(torch.version.cuda)"
        assert running.run(layout.PYTHON, "-c", code) == (0, "None\n")


@pytest.mark.slow
def test_a_keras_model_answers_on_the_same_runtime(
    engine: Any, pyfunc_image: BuiltImage, tmp_path: Path
) -> None:
    bundle = keras_model(tmp_path)
    built = build(bundle)
    assert built.runtime_reused
    with started(engine, built.name, user="54321:0") as running:
        print(f"ready after {running.ready_seconds:.1f} s")
        running.answers_its_example(bundle)
