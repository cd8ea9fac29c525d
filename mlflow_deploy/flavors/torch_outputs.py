"""The outputs of a PyTorch module, found by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.errors import ConversionError
from mlflow_deploy.flavors.base import Port

if TYPE_CHECKING:
    from mlflow_deploy.serving.values import Array


def outputs_of(module: Any, arrays: Mapping[str, Array] | None) -> Sequence[Port]:
    """The outputs, named `output_0`, `output_1`... as converted models name them; none without arrays.

    Args:
        arrays: the inputs of an example, in order.

    Raises:
        ConversionError: the module refuses the example, or answers with something else than tensors.
    """
    if arrays is None:
        return []
    import torch

    from mlflow_deploy.conversion.torch_model import tensors

    try:
        with torch.inference_mode():
            result = module(*tensors(arrays, list(arrays)))
    except Exception as error:
        why = " ".join(str(error).split())[-200:]
        raise ConversionError("The PyTorch module refuses its input example", why=why) from error
    values = list(result) if isinstance(result, tuple | list) else [result]
    if not all(isinstance(value, torch.Tensor) for value in values):
        raise ConversionError(
            "The PyTorch module does not answer with tensors",
            why=f"it answers with a {type(result).__name__}",
            hint="Let its forward return a tensor or a tuple of tensors",
        )
    ports = []
    for index, value in enumerate(values):
        rows = len(next(iter(arrays.values())))
        # One example does not tell whether the first dimension is the rows; the same length says so.
        shape = (-1, *value.shape[1:]) if value.ndim and value.shape[0] == rows else tuple(value.shape)
        ports.append(Port(f"output_{index}", np.dtype(str(value.dtype).removeprefix("torch.")).name, shape))
    return ports
