"""Comparison of answers in whatever form a model or its JSON gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def same_answer(answer: Any, expected: Any, atol: float) -> None:
    """Assert that two answers hold the same numbers and labels in the same shape.

    Args:
        answer: an array, a DataFrame, arrays by name, or what JSON made of one of them.
        expected: the same, of the native model.
        atol: how far numbers may differ, absolute and relative.
    """
    one, other = _by_name(answer), _by_name(expected)
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.shape == other[name].shape, name
        if array.dtype.kind in "fc" or other[name].dtype.kind in "fc":
            np.testing.assert_allclose(array, other[name], rtol=atol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(array, other[name], err_msg=name)


def _by_name(answer: Any) -> dict[str, np.ndarray[Any, Any]]:
    import pandas as pd

    if isinstance(answer, pd.DataFrame):
        return {str(name): answer[name].to_numpy() for name in answer.columns}
    if isinstance(answer, Mapping):
        return {str(name): np.asarray(value) for name, value in answer.items()}
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping):
        return {str(name): np.asarray([row[name] for row in answer]) for name in answer[0]}
    return {"": np.asarray(answer)}
