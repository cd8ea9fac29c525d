"""Build contexts are deterministic, complete and free of what an image does not need."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import labels
from mlflow_deploy.images.app import app_files
from mlflow_deploy.images.context import model_files, plan_image, write_context, write_tar
from mlflow_deploy.images.errors import OutputNotEmpty
from mlflow_deploy.images.spec import ImageSpec
from tests.bundles import adder_bundle
from tests.unit.images.conftest import make_spec


def silent(line: str) -> None:
    """Progress that nobody looks at."""


def test_the_same_bundle_gives_the_same_bytes(graph: Bundle, locked_spec: ImageSpec) -> None:
    archives = []
    for _ in range(2):
        file = io.BytesIO()
        write_tar(model_files(plan_image(graph, locked_spec, silent)), file)
        archives.append(file.getvalue())
        for path in graph.path.rglob("*"):
            path.touch()
        time.sleep(0.01)
    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as archive:
        members = archive.getmembers()
    assert {member.mode for member in members} == {0o644}
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, 315532800)}
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {"Dockerfile", "settings.json", "bundle/bundle.json", "bundle/servable/model.onnx"} <= set(names)
    assert {"app/mlflow_deploy/serving/__main__.py", "app/mlflow_deploy/images/start.py"} <= set(names)


def test_what_is_in_an_image_names_it(graph: Bundle, locked_spec: ImageSpec, tmp_path: Path) -> None:
    one = plan_image(graph, locked_spec, silent)
    assert one.name == f"mlflow-deploy/model:{one.digest[7:19]}"
    assert one.runtime == f"mlflow-deploy-runtime:{one.runtime_digest[7:23]}"
    other = plan_image(adder_bundle(tmp_path / "s", tmp_path / "w", 2.0), locked_spec, silent)
    assert other.digest != one.digest
    assert other.runtime == one.runtime
    user = plan_image(graph, locked_spec.model_copy(update={"user_id": 7}), silent)
    assert user.digest != one.digest
    assert user.runtime == one.runtime
    base = plan_image(graph, locked_spec.model_copy(update={"base_image": "b"}), silent)
    assert base.runtime != one.runtime
    named = plan_image(graph, locked_spec.model_copy(update={"repository": "r:5000/a", "tag": "t"}), silent)
    assert named.name == "r:5000/a:t"


def test_users_labels_do_not_replace_ours(graph: Bundle, locked_spec: ImageSpec) -> None:
    spec = locked_spec.model_copy(update={"labels": {labels.KIND: "x", "mine": "y"}, "source": "https://s"})
    found = plan_image(graph, spec, silent).labels
    assert found[labels.KIND] == "model"
    assert found["mine"] == "y"
    assert found["org.opencontainers.image.source"] == "https://s"


def test_an_image_has_the_server_and_none_of_the_doors() -> None:
    files = app_files(pyfunc=False)
    rooms = {name.split("/")[1].removesuffix(".py") for name in files if name.startswith("mlflow_deploy/")}
    assert {"serving", "bundle", "errors", "files", "settings", "images"} <= rooms
    assert not rooms & {
        "cli",
        "plugin",
        "lifecycle",
        "targets",
        "rollout",
        "conversion",
        "flavors",
        "gateway",
    }
    assert "mlflow_deploy/images/builder.py" not in files
    assert "mlflow_deploy/images/health.py" in files
    assert "mlflow_deploy/conversion/__init__.py" in app_files(pyfunc=True)


def test_a_pyfunc_image_carries_the_whole_model(
    make_pyfunc: Callable[[Mapping[str, str]], Bundle], locked_spec: ImageSpec
) -> None:
    plan = plan_image(
        make_pyfunc({"MLmodel": "flavors: {}\n", "requirements.txt": "numpy\n"}), locked_spec, silent
    )
    assert {"bundle/servable/MLmodel", "bundle/servable/requirements.txt"} <= plan.files.keys()
    assert plan.labels["org.opencontainers.image.version"] == "1"
    assert plan.name.startswith("mlflow-deploy/m:1-")


def test_a_folder_with_other_things_is_left_alone(
    graph: Bundle, locked_spec: ImageSpec, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine").touch()
    with pytest.raises(OutputNotEmpty):
        write_context(plan_image(graph, locked_spec, silent), output, silent)
    assert [path.name for path in output.iterdir()] == ["mine"]


def test_a_failed_context_leaves_nothing(graph: Bundle, locked_spec: ImageSpec, tmp_path: Path) -> None:
    output = tmp_path / "sub" / "out"
    plan = plan_image(graph, make_spec(lock=locked_spec.lock, pip_args="--no-index"), silent)
    with pytest.raises(Exception, match="do not resolve"):
        write_context(plan, output, silent)
    assert list((tmp_path / "sub").iterdir()) == []
