"""Real images of an ONNX model: small, quick, locked down, described, and without secrets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.builder import BuiltImage
from mlflow_deploy.images.engine import find_image
from tests.integration.images.conftest import build
from tests.integration.images.running import started

PYTHON = layout.PYTHON


def test_it_is_small(onnx_image: BuiltImage) -> None:
    assert onnx_image.bytes_above_base is not None
    print(f"{onnx_image.bytes_above_base / 1e6:.0f} MB above its base")
    assert onnx_image.bytes_above_base <= 200e6


@pytest.mark.alone
@pytest.mark.parametrize("user", [None, "54321:0", "987654:987654"])
def test_it_answers_under_any_user(
    engine: Any, onnx_image: BuiltImage, onnx_bundle: Bundle, user: str | None
) -> None:
    with started(engine, onnx_image.name, user=user) as running:
        print(f"ready after {running.ready_seconds:.2f} s")
        running.answers_its_example(onnx_bundle)
        _, uid = running.run("id", "-u")
        assert uid.strip() == (user or "10001").partition(":")[0]
        assert running.ready_seconds < 2


def test_the_server_needs_little_memory_and_no_mlflow(engine: Any, onnx_image: BuiltImage) -> None:
    with started(engine, onnx_image.name) as running:
        used = running.container.stats(stream=False)["memory_stats"]["usage"]
        print(f"{used / 2**20:.0f} MiB in use when idle")
        assert used < 150 * 2**20
        code = "import importlib.util as u; print([n for n in ('mlflow', 'pandas', 'pip') if u.find_spec(n)])"
        assert running.run(PYTHON, "-c", code) == (0, "[]\n")
        status, _ = running.run("sh", "-c", f"touch {layout.ROOT}/x || touch /etc/x")
        assert status != 0


def test_its_files_are_not_writable_by_the_server_on_a_writable_root(
    engine: Any, onnx_image: BuiltImage
) -> None:
    with started(engine, onnx_image.name, read_only=False) as running:
        _, found = running.run("find", layout.ROOT, "/etc/mlflow-deploy", "-writable", "-not", "-type", "l")
        assert found == ""


def test_health_is_seen_by_the_engine(engine: Any, onnx_image: BuiltImage) -> None:
    with started(engine, onnx_image.name) as running:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            running.container.reload()
            health = running.container.attrs["State"]["Health"]["Status"]
            if health != "starting":
                break
            time.sleep(0.2)
        assert health == "healthy"
        assert running.run(PYTHON, "-I", "-S", f"{layout.APP}/mlflow_deploy/images/health.py") == (0, "")


def test_it_drains_on_sigterm(engine: Any, onnx_image: BuiltImage) -> None:
    with started(engine, onnx_image.name) as running:
        running.container.stop(timeout=20)
        assert running.container.wait()["StatusCode"] == 0


def test_settings_come_by_the_environment(engine: Any, onnx_image: BuiltImage) -> None:
    document = {"deployment": "flights", "revision": 7, "serving": {"grpc": True}}
    given = {layout.SETTINGS_VARIABLE: json.dumps(document)}
    with started(engine, onnx_image.name, environment=given) as running:
        version = httpx.get(f"{running.url}/version").text
        assert "flights" in running.container.logs().decode() + version


def test_a_gpu_image_answers_on_the_cpu_when_that_is_allowed(
    engine: Any, onnx_image: BuiltImage, onnx_bundle: Bundle
) -> None:
    allowed = {layout.DEVICE_VARIABLE: "gpu", layout.FALLBACK_VARIABLE: "cpu"}
    with started(engine, onnx_image.name, environment=allowed) as running:
        running.answers_its_example(onnx_bundle)


def test_labels_tell_what_is_inside(engine: Any, onnx_image: BuiltImage, onnx_bundle: Bundle) -> None:
    found = engine.images.get(onnx_image.name).labels
    expected = {
        labels.KIND: "model",
        labels.BUNDLE: onnx_bundle.digest,
        labels.CONTEXT: onnx_image.context,
        labels.MODEL_NAME: "Image Test",
        labels.MODEL_VERSION: "1",
        labels.RUN_ID: "0123456789abcdef",
        labels.FORMAT: "onnx",
        labels.DEVICE: "cpu",
        "org.opencontainers.image.title": "Image Test",
        "org.opencontainers.image.version": "1",
    }
    assert expected.items() <= found.items()
    assert onnx_image.name.startswith("mlflow-deploy/image-test:1-")


def test_the_bill_of_materials_is_inside(engine: Any, onnx_image: BuiltImage, onnx_bundle: Bundle) -> None:
    with started(engine, onnx_image.name) as running:
        _, text = running.run("cat", layout.SBOM)
        _, listed = running.run(PYTHON, "-c", "import onnxruntime; print(onnxruntime.__version__)")
    assert json.loads(text) == onnx_image.sbom
    model = onnx_image.sbom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert "sha256-" + model["hashes"][0]["content"] == onnx_bundle.digest
    versions = {each["name"]: each.get("version") for each in onnx_image.sbom["components"]}
    assert versions["onnxruntime"] == listed.strip()
    assert {"libc6", "numpy", "granian", "mlflow-deploy", "servable/model.onnx"} <= versions.keys()


def test_the_same_bundle_is_not_built_again(engine: Any, onnx_image: BuiltImage, onnx_bundle: Bundle) -> None:
    same = {"label": f"{labels.BUNDLE}={onnx_bundle.digest}"}
    before = {each["Id"] for each in engine.api.images(filters=same)}
    again = build(onnx_bundle)
    assert again.reused
    assert again.id == onnx_image.id
    assert {each["Id"] for each in engine.api.images(filters=same)} == before


@pytest.mark.alone
def test_a_second_version_takes_seconds_and_shares_all_but_kilobytes(
    engine: Any, onnx_image: BuiltImage, make_adder: Callable[[int], Bundle]
) -> None:
    bundle = make_adder(2)
    begun = time.monotonic()
    second = build(bundle)
    with started(engine, second.name) as running:
        took = time.monotonic() - begun
        running.answers_its_example(bundle)
    print(f"from bundle to ready in {took:.1f} s")
    assert took < 5
    assert second.runtime_reused
    assert not second.reused
    one, two = (engine.images.get(each.name) for each in (onnx_image, second))
    layers = [each.attrs["RootFS"]["Layers"] for each in (one, two)]
    shared = sum(a == b for a, b in zip(*layers, strict=True))
    assert layers[0][:shared] == layers[1][:shared]
    assert len(layers[0]) - shared <= 2
    own = [step["Size"] for step in two.history() if step["Size"]][: len(layers[0]) - shared]
    print(f"{sum(own) / 1000:.0f} kB of its own")
    assert sum(own) < 100_000


def test_builds_leave_nothing_on_their_way(engine: Any, onnx_image: BuiltImage) -> None:
    assert find_image(engine, onnx_image.runtime) is not None
    runtime = engine.images.get(onnx_image.runtime).labels[labels.RUNTIME]
    filters = {"label": [f"{labels.KIND}=build", f"{labels.RUNTIME}={runtime}"]}
    assert engine.api.images(filters=filters) == []
    assert engine.api.containers(all=True, filters=filters) == []
