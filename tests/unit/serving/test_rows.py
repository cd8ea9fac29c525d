"""Packed rows hold what an array would, and refuse what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_deploy.serving.rows import RowPacker


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_packed_row_is_the_row_as_an_array(dtype: str) -> None:
    row = [0.1, -2.0, 1e-30, 3.4e38]
    packed = RowPacker("X", dtype, 4)([row])
    assert packed is not None
    assert packed.key == ((1, 4),)
    expected = np.array([row], dtype)
    assert packed.feeds()["X"].dtype == expected.dtype
    assert np.array_equal(packed.feeds()["X"], expected)
    assert packed.data == expected.tobytes()


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([[1.0, 2.0], [3.0, 4.0]], id="two rows"),
        pytest.param([], id="no row"),
        pytest.param([[1.0]], id="too short"),
        pytest.param([[1.0, 2.0, 3.0]], id="too long"),
        pytest.param([[1.0, None]], id="missing"),
        pytest.param([[1.0, 1e39]], id="beyond float32"),
    ],
)
def test_what_does_not_fit_is_left_to_the_general_way(rows: list[list[float | None]]) -> None:
    assert RowPacker("X", "float32", 2)(rows) is None
