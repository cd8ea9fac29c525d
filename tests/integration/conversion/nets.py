"""Small networks of the conversion tests, each with rows it was made for, saved with MLflow."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import infer_signature
from torch import nn


def numbers(*shape: int) -> Any:
    """Numbers around zero."""
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


# --- PyTorch -----------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """Two dense layers with an exact gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Dropout(0.5), nn.Linear(12, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.layers(x), dim=1)


class Cnn(nn.Module):
    """A convolution with batch normalisation and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(27, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(pooled.flatten(1))


class Encoder(nn.Module):
    """A transformer encoder layer over a short sequence."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


class Lstm(nn.Module):
    """An LSTM that answers from its last step; the rows are the second dimension unless `batch_first`."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.cell, self.head = nn.LSTM(4, 8, batch_first=batch_first), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.cell(x)[0]
        if self.batch_first:
            states = states[:, -1]
        return self.head(states)


class Branch(nn.Module):
    """Decides on a value: a trace would decide once and for all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.first(x)
        return self.second(x)


TORCH: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (Mlp, (6,)),
    "CNN": (Cnn, (1, 6, 6)),
    "transformer encoder": (Encoder, (3, 8)),
    "LSTM": (Lstm, (3, 4)),
}


def save_torch(
    model: nn.Module, rows: Any, folder: Path, *, format: str = "pickle", train: bool = False, **settings: Any
) -> Path:
    """Save a module with MLflow's own flavor."""
    import mlflow.pytorch

    model.train(train)
    with torch.no_grad():
        whole = isinstance(rows, np.ndarray) and rows.dtype.kind == "i"
        given = np.array(rows, dtype=rows.dtype if whole else np.float32)
        answer = model(torch.from_numpy(given)).numpy()
    if not isinstance(rows, np.ndarray):
        import pandas as pd

        answer = pd.DataFrame(answer)
    logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {"signature": infer_signature(rows, answer), "input_example": rows} | settings
        mlflow.pytorch.save_model(
            model, str(folder), serialization_format=format, pip_requirements=["torch"], **arguments
        )
    return folder


def torch_model(name: str) -> tuple[nn.Module, Any]:
    """A network with weights that are the same in every run, and rows for it."""
    make, shape = TORCH[name]
    torch.manual_seed(3)
    return make(), numbers(6, *shape)


# --- Keras -------------------------------------------------------------------------------------------------


def _keras_mlp() -> tuple[Any, Any]:
    import keras
    from keras import layers

    dense = [layers.Dense(12, activation="gelu"), layers.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input((6,)), *dense]), numbers(6, 6)


def _keras_cnn() -> tuple[Any, Any]:
    import keras
    from keras import layers

    steps = [layers.Conv2D(3, 3, activation="relu"), layers.BatchNormalization(), layers.MaxPooling2D()]
    model = keras.Sequential([keras.Input((6, 6, 1)), *steps, layers.Flatten(), layers.Dense(3)])
    return model, numbers(6, 6, 6, 1)


def _keras_several() -> tuple[Any, Any]:
    import keras
    from keras import layers

    amounts, kinds = keras.Input((3,), name="amounts"), keras.Input((1,), name="kinds", dtype="int32")
    known = layers.Flatten()(layers.Embedding(4, 2)(kinds))
    both = layers.Concatenate()([layers.Dense(4, activation="relu")(amounts), known])
    outputs = {"risk": layers.Dense(1, activation="sigmoid")(both), "cost": layers.Dense(2)(both)}
    rows = {"amounts": numbers(6, 3), "kinds": np.array([[0], [1], [2], [3], [0], [1]], dtype=np.int32)}
    return keras.Model([amounts, kinds], outputs), rows


def _keras_lstm(**settings: Any) -> tuple[Any, Any]:
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((3, 4)), layers.LSTM(8, **settings), layers.Dense(2)])
    return model, numbers(6, 3, 4)


KERAS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "MLP": _keras_mlp,
    "CNN": _keras_cnn,
    "several inputs": _keras_several,
    "LSTM": _keras_lstm,
    "LSTM unrolled": lambda: _keras_lstm(unroll=True),
}


def keras_model(name: str) -> tuple[Any, Any]:
    """A network with weights that are the same in every run, and rows for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras

        keras.utils.set_random_seed(3)
        return KERAS[name]()


def save_keras(model: Any, rows: Any, folder: Path, flavor: str = "tensorflow", **settings: Any) -> Path:
    """Save a model with MLflow's tensorflow or keras flavor."""
    import importlib

    saving = importlib.import_module(f"mlflow.{flavor}")
    if flavor == "keras":
        # This flavor writes its example before it makes the folder.
        folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = model.predict(rows, verbose=0) if hasattr(model, "predict") else model(rows).numpy()
        saving.save_model(
            model,
            str(folder),
            signature=infer_signature(rows, answer),
            input_example=rows,
            pip_requirements=["tensorflow-cpu"],
            **settings,
        )
    return folder
