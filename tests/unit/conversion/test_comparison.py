"""The table of two models: what it measures and how it is written."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from mlflow_deploy.conversion.comparison import Subject, compare_models, interleaved, metric

ROWS = {"": np.eye(3, dtype=np.float32)}


def _subject(name: str, answers: np.ndarray, size: int) -> Subject:
    return Subject(name, lambda rows: answers, bytes(size), size // 4, lambda rows: lambda: None)


def test_the_table_shows_sizes_gains_and_what_it_cost() -> None:
    right, wrong = np.eye(3), np.eye(3)[[0, 2, 1]]
    found = compare_models(
        "pruning", _subject("a", right, 8000), _subject("b<i>", wrong, 2000), ROWS, truth=np.arange(3),
        notes=("a note",),
    )  # fmt: skip
    assert found.before.metrics == {"accuracy": 1.0}
    assert found.after.metrics == {"accuracy": pytest.approx(1 / 3)}
    assert found.agreement == pytest.approx(1 / 3)
    text = found.to_markdown()
    assert "| size, kB | 8.0 | 2.0 | x4.00 |" in text
    assert "latency at 64 rows" in text
    assert "| accuracy | 1.0000 | 0.3333 | -0.6667 |" in text
    assert "33.33%" in text
    assert "a note" in text
    assert "b&lt;i&gt;" in found.to_html()
    assert json.loads(json.dumps(found.to_dict()))["after"]["latency_us"].keys() == {"1", "64"}


def test_numbers_get_a_squared_error_and_two_classes_an_accuracy() -> None:
    assert metric(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == {"rmse": pytest.approx(2**0.5)}
    assert metric(np.array([[0.9], [0.2]]), np.array([1, 1])) == {"accuracy": 0.5}


def test_calls_take_turns_and_the_slower_one_is_slower() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.002)

    found = interleaved({"fast": lambda: order.append("fast"), "slow": slow}, rounds=2)
    assert found["slow"] > 1000 > found["fast"]
    assert "slow" in order[: order.index("slow") + 1]
    assert order.index("slow") < len(order) - 1 - order[::-1].index("fast")
