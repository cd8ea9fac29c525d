"""Which of ONNX Runtime's providers a server asks for."""

from __future__ import annotations

import onnxruntime
import pytest

from mlflow_deploy.serving.backends.onnx import _providers


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (["AzureExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
        ),
    ],
)
def test_a_gpu_comes_first_and_the_cpu_is_always_there(available: list[str], expected: list[str]) -> None:
    assert set(available) <= set(onnxruntime.get_all_providers())
    assert _providers(available) == expected
