"""Short training of PyTorch and Keras models: what fine-tuning after pruning and distillation share."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.comparison import Subject
from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.errors import DataError, UnsupportedConversion

if TYPE_CHECKING:
    import keras
    import torch

    from mlflow_deploy.conversion.rows import Rows

    TorchLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, and how.

    Attributes:
        inputs: [rows, ...] in the type that the model takes.
        labels: [rows]: whole numbers are classes, fractions are numbers to be met.
        epochs: times that all rows are seen.
        learning_rate: of the optimiser Adam.
        batch_size: rows per step.
        seed: of the order of the rows.
    """

    inputs: Array
    labels: Array
    epochs: int = 3
    learning_rate: float = 1e-3
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels) or not len(self.inputs):
            raise DataError(
                f"{len(self.inputs)} rows and {len(self.labels)} labels cannot be trained on",
                hint="Give one label for each row",
            )

    @property
    def classes(self) -> bool:
        """Whether the labels are classes."""
        return self.labels.dtype.kind in "iub"


def framework(model: Any) -> str:
    """`torch` or `keras`.

    Raises:
        UnsupportedConversion: the model is of neither.
    """
    bases = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(model).__mro__}
    if "torch.Module" in bases:
        return "torch"
    if "keras.Model" in bases:
        return "keras"
    raise UnsupportedConversion(
        f"A model of type {type(model).__name__}",
        "a smaller model",
        "only PyTorch modules and Keras models can be pruned and distilled",
        "For other models use -C precision=int8, which needs no training",
    )


def subject(name: str, model: Any) -> Subject:
    """A PyTorch or Keras model as something to be measured."""
    return torch_subject(name, model) if framework(model) == "torch" else keras_subject(name, model)


# --- PyTorch -----------------------------------------------------------------------------------------------


def torch_subject(name: str, model: torch.nn.Module) -> Subject:
    """A PyTorch model, measured eagerly on one thread with its tensors ready."""
    import torch

    def tensor(rows: Rows) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(one_array(rows)))

    def answer(rows: Rows) -> Array:
        with torch.inference_mode():
            return np.asarray(model.eval()(tensor(rows)).numpy())

    def timed(rows: Rows) -> Callable[[], object]:
        given = tensor(rows)
        model.eval()

        def call() -> object:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                with torch.inference_mode():
                    return model(given)
            finally:
                torch.set_num_threads(before)

        return call

    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    parameters = sum(item.numel() for item in model.parameters())
    return Subject(name, answer, buffer.getvalue(), parameters, timed)


def train_torch(
    model: torch.nn.Module, data: TrainingData, loss: TorchLoss, targets: torch.Tensor
) -> list[float]:
    """Train in place with Adam; the model is left in evaluation mode.

    Args:
        loss: (answers, targets) -> scalar.
        targets: [rows, ...]: what `loss` takes beside the answers.

    Returns:
        The mean loss of each epoch.
    """
    import torch

    inputs = torch.from_numpy(np.ascontiguousarray(data.inputs))
    order = torch.Generator().manual_seed(data.seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=data.learning_rate)
    losses = []
    model.train()
    for _ in range(data.epochs):
        total = 0.0
        for index in torch.randperm(len(inputs), generator=order).split(data.batch_size):
            optimiser.zero_grad()
            value = loss(model(inputs[index]), targets[index])
            value.backward()
            optimiser.step()
            total += float(value.detach()) * len(index)
        losses.append(total / len(inputs))
    model.eval()
    return losses


def torch_targets(data: TrainingData) -> torch.Tensor:
    """The labels as the losses take them."""
    import torch

    return torch.from_numpy(data.labels.astype(np.int64 if data.classes else np.float32))


def torch_log_odds(answers: torch.Tensor) -> torch.Tensor:
    """Answers as logits: probabilities become their logarithms, logits stay."""
    import torch

    sums = answers.detach().sum(dim=-1)
    if (
        answers.ndim == 2
        and bool((answers.detach() >= 0).all())
        and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    ):
        return answers.clamp_min(1e-12).log()
    return answers


def torch_task_loss(data: TrainingData) -> TorchLoss:
    """Cross entropy for classes, mean squared error for numbers."""
    from torch.nn import functional

    def loss(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if data.classes:
            return functional.cross_entropy(torch_log_odds(answers), targets)
        return functional.mse_loss(answers.reshape(targets.shape), targets)

    return loss


# --- Keras -------------------------------------------------------------------------------------------------


def keras_subject(name: str, model: keras.Model) -> Subject:
    """A Keras model, measured as the compiled function that a SavedModel of it serves."""
    import tensorflow as tf

    function = tf.function(lambda given: model(given, training=False), reduce_retracing=True)

    def tensors(rows: Rows) -> Any:
        if isinstance(rows, dict) and list(rows) != [""]:
            return {key: tf.constant(array) for key, array in rows.items()}
        return tf.constant(one_array(rows))

    def timed(rows: Rows) -> Callable[[], object]:
        given = tensors(rows)
        return lambda: function(given)

    content = b"".join(np.ascontiguousarray(array).tobytes() for array in model.get_weights())
    return Subject(
        name, lambda rows: np.asarray(function(tensors(rows))), content, int(model.count_params()), timed
    )


def keras_task_loss(model: keras.Model, data: TrainingData) -> Any:
    """Cross entropy for classes, mean squared error for numbers; probabilities and logits are told apart."""
    import keras

    if not data.classes:
        return keras.losses.MeanSquaredError()
    shown = keras_probabilities(model, data)
    if model.output_shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=not shown)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=not shown)


def keras_probabilities(model: keras.Model, data: TrainingData) -> bool:
    """Whether the model answers with probabilities, seen on its own answers."""
    answers = np.asarray(model(data.inputs[:64], training=False))
    inside = bool((answers >= 0).all() and (answers <= 1).all())
    return inside and (answers.shape[-1] == 1 or bool(np.allclose(answers.sum(axis=-1), 1, atol=1e-3)))


def train_keras(model: keras.Model, data: TrainingData, loss: Any, targets: Array) -> list[float]:
    """Train in place with Adam and return the mean loss of each epoch.

    The model itself is not compiled: what it is compiled with belongs to who made it.
    """
    import keras

    keras.utils.set_random_seed(data.seed)
    trained = keras.Model(model.inputs, model.outputs[0])
    trained.compile(optimizer=keras.optimizers.Adam(data.learning_rate), loss=loss)
    history = trained.fit(data.inputs, targets, epochs=data.epochs, batch_size=data.batch_size, verbose=0)
    return [float(value) for value in history.history["loss"]]


def one_array(rows: Rows | Array) -> Array:
    """The only tensor of some rows.

    Raises:
        DataError: there are several.
    """
    if isinstance(rows, np.ndarray):
        return rows
    if isinstance(rows, dict) and len(rows) == 1:
        return np.asarray(next(iter(rows.values())))
    if isinstance(rows, dict):
        raise DataError(f"The model takes one tensor, the rows have {sorted(rows)}")
    return np.asarray(rows.to_numpy(dtype=np.float32))  # type: ignore[union-attr]
