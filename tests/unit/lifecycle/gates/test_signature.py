"""What callers of a deployed signature would notice of another one."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_deploy.lifecycle.gates.signature import incompatible

OLD: dict[str, Any] = {
    "inputs": [
        {"type": "double", "name": "x", "required": True},
        {"type": "long", "name": "n", "required": False},
    ],
    "outputs": [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}],
    "params": None,
}


def changed(**parts: Any) -> list[str]:
    return list(incompatible(OLD, {**OLD, **parts}))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (
            [*OLD["inputs"], {"type": "double", "name": "z", "required": True}],
            ["input 'z' is new and required"],
        ),
        ([*OLD["inputs"], {"type": "double", "name": "z", "required": False}], []),
        (OLD["inputs"][:1], []),
        ([{"type": "string", "name": "x", "required": True}], ["input 'x' was double, is string"]),
        ([{"type": "long", "name": "n", "required": True}], ["input 'n' was optional, is required"]),
    ],
)
def test_inputs(inputs: list[dict[str, Any]], told: list[str]) -> None:
    assert changed(inputs=inputs) == told


def test_answers_and_parameters() -> None:
    outputs = [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]
    assert changed(outputs=outputs) == ["the answer was int64[], is float64[2]"]
    params = [{"name": "t", "type": "double", "default": None}, {"name": "k", "type": "long", "default": 3}]
    assert changed(params=params) == ["parameter 't' is new and has no default"]
    assert changed() == []
