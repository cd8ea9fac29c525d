"""The Dockerfiles as text."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy.images import layout
from mlflow_deploy.images.dockerfile import _quoted, model_dockerfile, runtime_dockerfile
from tests.unit.images.conftest import make_spec


def test_a_cpu_runtime() -> None:
    text = runtime_dockerfile(make_spec(python="3.11"), "sha256-0")
    assert text.startswith("FROM python:3.11-slim AS build\n")
    assert "\nFROM python:3.11-slim AS runtime\n" in text
    assert "STOPSIGNAL SIGTERM" in text
    assert "HEALTHCHECK" in text
    assert "EXPOSE 8080 8081" in text
    assert f'ENTRYPOINT ["{layout.PYTHON}", "-m", "mlflow_deploy.images.start"]' in text
    assert "MLFLOW_DEPLOY_DEVICE=cpu" in text
    assert not re.search("NVIDIA|nvidia|ldconfig|apt-get|ARG", text)


def test_a_gpu_runtime() -> None:
    text = runtime_dockerfile(make_spec(device="gpu", base_image="nvidia/cuda:13.0-runtime"), "sha256-0")
    assert text.startswith("FROM nvidia/cuda:13.0-runtime AS build\n")
    assert "NVIDIA_VISIBLE_DEVICES=all" in text
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in text
    assert "MLFLOW_DEPLOY_DEVICE=gpu" in text
    assert "ldconfig" in text


def test_a_runtime_with_tensorrt() -> None:
    plain = runtime_dockerfile(make_spec(device="gpu"), "sha256-0")
    assert "tensorrt" not in plain
    assert layout.PROVIDER_VARIABLE not in plain
    text = runtime_dockerfile(make_spec(device="gpu", gpu_provider="tensorrt"), "sha256-0")
    assert "-o -name tensorrt_libs" in text
    assert f"{layout.PROVIDER_VARIABLE}=tensorrt\n" in text


def test_debian_packages() -> None:
    text = runtime_dockerfile(make_spec(system_packages="libgomp1,curl=8.0"), "sha256-0")
    assert "apt-get install -y --no-install-recommends curl=8.0 libgomp1 " in text


def test_files_in_a_folder() -> None:
    assert "COPY runtime/wheels /build/wheels" in runtime_dockerfile(make_spec(), "", prefix="runtime/")


def test_a_model() -> None:
    text = model_dockerfile(
        make_spec(user_id=4321), "mlflow-deploy-runtime:abc", {"b": "2", "a": 'x "y" $z\nq'}
    )
    assert text.startswith("FROM mlflow-deploy-runtime:abc\n")
    assert "\nUSER 4321:0\n" in text
    assert 'LABEL "a"="x \\"y\\" \\$z q" \\\n    "b"="2"\n' in text


@given(st.text())
def test_no_text_leaves_its_quotes(text: str) -> None:
    quoted = _quoted(text)
    assert "\n" not in quoted
    assert not re.search(r"(?<!\\)(\\\\)*\$", quoted)
    plain = json.loads(quoted.replace("\\$", "$"))
    assert len(plain) == len(text)
