"""Distillation: a small student learns from the labels and from how sure a large teacher is of each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.training import (
    TrainingData,
    framework,
    keras_probabilities,
    keras_task_loss,
    torch_log_odds,
    torch_targets,
    torch_task_loss,
    train_keras,
    train_torch,
)
from mlflow_deploy.errors import ConfigError, UnsupportedConversion

if TYPE_CHECKING:
    import keras
    import torch

    from mlflow_deploy.conversion.training import TorchLoss

METHOD = "distillation"


@dataclass(frozen=True)
class Distilled:
    """A trained student.

    Attributes:
        model: the student that was given, trained in place.
        temperature: by which the logits of both were divided.
        mix: weight of the teacher's answers; the labels have the rest.
        losses: mean loss of each epoch.
    """

    model: Any
    temperature: float
    mix: float
    losses: tuple[float, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the comparison has to know."""
        return (f"Temperature {self.temperature:g}, {self.mix:.0%} teacher, {len(self.losses)} epochs.",)


def distill(
    teacher: Any, student: Any, data: TrainingData, *, temperature: float = 4.0, mix: float = 0.7
) -> Distilled:
    """Train a student in place to answer like its teacher.

    For classes the loss is `mix * T^2 * KL(teacher / T, student / T) + (1 - mix) * cross entropy`, for numbers
    `mix * MSE(teacher) + (1 - mix) * MSE(labels)`. Both models may answer with logits or with probabilities.

    Args:
        teacher: a trained PyTorch module or Keras model; it is not changed.
        student: a smaller model of the same framework with answers of the same shape.
        data: rows with labels, and how to train.
        temperature: above 0; higher ones show more of what the teacher thinks of the other classes.
        mix: 0 learns from the labels only, 1 from the teacher only.

    Raises:
        UnsupportedConversion: the models are of different frameworks or answer in different shapes.
        ConfigError: temperature or mix is impossible.
    """
    if temperature <= 0 or not 0 <= mix <= 1:
        raise ConfigError(
            f"Temperature {temperature:g} and mix {mix:g} cannot be trained with",
            hint="Give a temperature above 0 and a mix from 0 to 1",
        )
    kinds = framework(teacher), framework(student)
    if kinds[0] != kinds[1]:
        raise UnsupportedConversion(
            f"A student of {kinds[1]}",
            "a distilled model",
            f"the teacher is of {kinds[0]}",
            "Give a teacher and a student of one framework",
        )
    losses = (_distill_torch if kinds[0] == "torch" else _distill_keras)(
        teacher, student, data, temperature, mix
    )
    return Distilled(student, temperature, mix, tuple(losses))


def _distill_torch(
    teacher: torch.nn.Module, student: torch.nn.Module, data: TrainingData, temperature: float, mix: float
) -> list[float]:
    import torch
    from torch.nn import functional

    inputs = torch.from_numpy(np.ascontiguousarray(data.inputs))
    teacher.eval()
    with torch.no_grad():
        taught = torch.cat([teacher(part) for part in inputs.split(256)])
        shown = student.eval()(inputs[:2])
    _same_answers(tuple(taught.shape[1:]), tuple(shown.shape[1:]))
    task, labels = torch_task_loss(data), torch_targets(data)

    def classes(answers: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        soft = functional.log_softmax(torch_log_odds(answers) / temperature, dim=1)
        aim = functional.log_softmax(torch_log_odds(taught[index]) / temperature, dim=1)
        learnt = functional.kl_div(soft, aim, log_target=True, reduction="batchmean") * temperature**2
        return mix * learnt + (1 - mix) * task(answers, labels[index])

    def numbers(answers: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return mix * functional.mse_loss(answers, taught[index]) + (1 - mix) * task(answers, labels[index])

    loss: TorchLoss = classes if data.classes and taught.ndim == 2 and taught.shape[1] > 1 else numbers
    return train_torch(student, data, loss, torch.arange(len(inputs)))


def _distill_keras(
    teacher: keras.Model, student: keras.Model, data: TrainingData, temperature: float, mix: float
) -> list[float]:
    import keras
    from keras import ops

    taught = np.asarray(teacher.predict(data.inputs, batch_size=256, verbose=0))
    _same_answers(taught.shape[1:], tuple(student.output_shape[1:]))
    probabilities = (keras_probabilities(teacher, data), keras_probabilities(student, data))
    task = keras_task_loss(student, data)
    several = data.classes and taught.ndim == 2 and taught.shape[1] > 1

    def log_odds(answers: Any, given: bool) -> Any:
        return ops.log(ops.clip(answers, 1e-12, 1.0)) if given else answers

    def loss(target: Any, answers: Any) -> Any:
        label, aim = target[:, :1], target[:, 1:]
        hard = task(label, answers)
        if not several:
            return mix * keras.losses.MeanSquaredError()(aim, answers) + (1 - mix) * hard
        wanted = ops.log_softmax(log_odds(aim, probabilities[0]) / temperature)
        soft = ops.log_softmax(log_odds(answers, probabilities[1]) / temperature)
        learnt = ops.mean(ops.sum(ops.exp(wanted) * (wanted - soft), axis=-1)) * temperature**2
        return mix * learnt + (1 - mix) * hard

    target = np.concatenate([data.labels.reshape(-1, 1), taught.reshape(len(taught), -1)], axis=1)
    return train_keras(student, data, loss, target.astype(np.float32))


def _same_answers(teacher: tuple[Any, ...], student: tuple[Any, ...]) -> None:
    if teacher != student:
        raise UnsupportedConversion(
            "The student",
            "a distilled model",
            f"it answers in shape {list(student)} for each row, the teacher in {list(teacher)}",
            "Give the student a last layer like the teacher's",
        )
