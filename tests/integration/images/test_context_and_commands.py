"""The build context for those who build elsewhere, and the command line, on the real engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.cli.image import image as command
from mlflow_deploy.cli.prune import prune
from mlflow_deploy.errors import DeployError
from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.builder import BuiltImage
from mlflow_deploy.images.catalog import list_images, prune_images
from mlflow_deploy.images.context import plan_image, write_context
from mlflow_deploy.images.engine import find_image
from tests.integration.images.bundles import MODEL, adder
from tests.integration.images.conftest import BASE, MARK, TEST_LABEL, build, make_spec
from tests.integration.images.running import started
from tests.wheels import small_lock

SETTINGS = ["-C", f"base_image={BASE}", "-C", "torch_index=", "-C", f"labels={TEST_LABEL}={MARK}"]


def run(*arguments: str) -> Result:
    """Run a command of the group; errors of ours are raised."""
    result = CliRunner().invoke(command, list(arguments))
    if isinstance(result.exception, DeployError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def docker_build(tool: str, context: Path, name: str, *, buildkit: bool) -> str:
    """Build a context by Docker's own command, without a network; returns what it printed."""
    command = [
        tool,
        "build",
        "--network",
        "none",
        "--label",
        f"{TEST_LABEL}={MARK}",
        "-t",
        name,
        str(context),
    ]
    environment = {**os.environ, "DOCKER_BUILDKIT": str(int(buildkit)), "BUILDKIT_PROGRESS": "plain"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    return printed


def docker_with_buildkit() -> str:
    """A `docker` that builds with BuildKit: one with buildx, or one before 23, which has it built in."""
    for folder in [*os.get_exec_path(), "/usr/bin"]:
        tool = Path(folder) / "docker"
        if not tool.is_file():
            continue
        version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
        buildx = subprocess.run([tool, "buildx", "version"], capture_output=True, text=True).returncode == 0
        if buildx or int(version.split()[2].partition(".")[0]) < 23:
            return str(tool)
    pytest.skip("no docker command with BuildKit (Debian packages docker.io or docker-buildx)")


@pytest.fixture
def written(engine: Any, onnx_bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Writes the context of the model's image; what builds of it leave unnamed is removed at the end."""
    digests = []

    def write(**settings: Any) -> Path:
        plan = plan_image(onnx_bundle, make_spec(**settings), lambda line: None)
        digests.append(plan.runtime_digest)
        write_context(plan, tmp_path / "context", lambda line: None)
        return tmp_path / "context"

    yield write
    for digest in digests:
        left = {"dangling": True, "label": f"{labels.RUNTIME}={digest}"}
        for each in engine.api.images(filters=left):
            engine.api.remove_image(each["Id"])


@pytest.mark.slow
def test_the_written_context_builds_with_buildkit(
    engine: Any, onnx_bundle: Bundle, written: Callable[..., Path]
) -> None:
    tool, name = docker_with_buildkit(), f"mlflow-deploy-test-elsewhere:{MARK}"
    assert "#1 [internal]" in docker_build(tool, written(), name, buildkit=True)
    with started(engine, name, user="54321:0") as running:
        running.answers_its_example(onnx_bundle)


@pytest.mark.slow
def test_the_written_context_builds_without_buildkit(
    engine: Any, written: Callable[..., Path], tmp_path: Path
) -> None:
    """With one tiny package: that the server runs in what this builder makes is what the other tests show."""
    tool = shutil.which("docker")
    if tool is None:
        pytest.skip("there is no docker command (Debian package docker.io)")
    name = f"mlflow-deploy-test-classic:{MARK}"
    assert "Step 1/" in docker_build(tool, written(**small_lock(tmp_path)), name, buildkit=False)
    code = "import privatepkg, mlflow_deploy.serving, os; print(privatepkg.VALUE, os.getuid())"
    said = engine.containers.run(
        name, ["-I", "-c", code], entrypoint=layout.PYTHON, remove=True, labels={TEST_LABEL: MARK}
    )
    assert said == b"42 10001\n"


@pytest.mark.parametrize("buildkit", ["0", "1"])
def test_builds_do_not_depend_on_buildkit(
    tiny_image: BuiltImage,
    tiny_settings: dict[str, Any],
    make_adder: Callable[[int], Bundle],
    monkeypatch: pytest.MonkeyPatch,
    buildkit: str,
) -> None:
    """The variable is for Docker's command line; the engine builds the same way whatever it says."""
    monkeypatch.setenv("DOCKER_BUILDKIT", buildkit)
    built = build(make_adder(7 + int(buildkit)), **tiny_settings)
    assert (built.runtime, built.runtime_reused, built.reused) == (tiny_image.runtime, True, False)


def test_build_twice_list_and_inspect(engine: Any, onnx_image: BuiltImage, onnx_bundle: Bundle) -> None:
    answer = json.loads(run("build", str(onnx_bundle.path), *SETTINGS, "--json").output)
    assert answer["name"] == onnx_image.name
    assert answer["reused"]
    assert f"{onnx_image.name} exists: " in run("build", str(onnx_bundle.path), *SETTINGS).output
    listed = json.loads(run("ls", "--json").output)
    assert onnx_image.id in [each["id"] for each in listed]
    assert "Image Test" in run("ls").output.replace("\n", " ")
    [found] = json.loads(run("inspect", onnx_image.name, "--json").output)
    assert found["user"] == "10001:0"
    assert found["sbom"] == onnx_image.sbom
    assert labels.BUNDLE in run("inspect", onnx_image.name).output


def test_the_bill_of_materials_is_logged_to_the_models_run(
    engine: Any, onnx_image: BuiltImage, tracking: str, tmp_path: Path
) -> None:
    import mlflow

    with mlflow.start_run() as active:
        pass
    bundle = adder(tmp_path, 3, run_id=active.info.run_id)
    run("build", str(bundle.path), *SETTINGS, "--sbom", str(tmp_path / "sbom.json"))
    [logged] = mlflow.MlflowClient().list_artifacts(active.info.run_id, "mlflow-deploy/images")
    text = mlflow.artifacts.load_text(f"runs:/{active.info.run_id}/{logged.path}")
    assert json.loads(text) == json.loads((tmp_path / "sbom.json").read_text())


def test_a_run_that_is_gone_costs_a_warning_only(engine: Any, tracking: str, tmp_path: Path) -> None:
    bundle = adder(tmp_path, 4, run_id="f" * 32)
    result = run("build", str(bundle.path), *SETTINGS)
    assert "Warning: the bill of materials was not logged" in result.stderr


def test_prune_keeps_the_newest_and_what_is_in_use(
    engine: Any, onnx_image: BuiltImage, make_adder: Callable[[int], Bundle]
) -> None:
    newest = build(make_adder(5))
    older = build(make_adder(6))
    with started(engine, older.name):
        useless = prune_images(keep=1, dry_run=True, progress=lambda line: None, model=MODEL)
        ids = {status.id for status in useless}
        assert ids
        assert older.id not in ids
        everything = prune_images(keep=0, dry_run=True, progress=lambda line: None, model=MODEL)
        assert newest.id in {status.id for status in everything}
        # The one in use stands on it.
        assert onnx_image.runtime not in {status.shown for status in everything}
        assert newest.id in {status.id for status in list_images()}
        removed = json.loads(run("prune", f"models:/{MODEL}/5", "--keep", "0", "--json").output)
    assert [status["id"] for status in removed] == [newest.id]
    assert newest.id not in {status.id for status in list_images()}


@pytest.mark.slow
def test_prune_removes_all_images_that_no_deployment_refers_to(
    small_engine: Any, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    """On an engine of its own: the command is about all images of an engine."""
    built = build(onnx_bundle, **small_lock(tmp_path))

    def pruned(*options: str) -> dict[str, Any]:
        result = CliRunner().invoke(prune, ["-t", "docker", "--images", "--json", *options])
        assert result.exit_code == 0, result.output
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    # The image is too young to be surely useless.
    assert pruned("--yes")["orphans"] == []
    shown = pruned("--older-than", "0")
    assert [(each["kind"], each["name"]) for each in shown["orphans"]] == [
        ("image", built.name),
        ("image", built.runtime),
    ]
    assert len(small_engine.images.list(filters={"label": labels.KIND})) == 2
    assert pruned("--older-than", "0", "--yes") == {**shown, "removed": True}
    assert small_engine.api.images(filters={"label": labels.KIND}) == []
    assert find_image(small_engine, BASE) is not None
