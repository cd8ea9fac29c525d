"""Pruning and distillation of PyTorch networks: what is removed, what stays, and what is refused."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mlflow_deploy.conversion.distillation import distill
from mlflow_deploy.conversion.pruning import MASKS, mask, prune
from mlflow_deploy.conversion.training import (
    TrainingData,
    torch_subject,
    torch_targets,
    torch_task_loss,
    train_torch,
)
from mlflow_deploy.errors import ConfigError, DataError, UnsupportedConversion

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

PIXELS, DIGITS = load_digits(return_X_y=True)
PIXELS = (PIXELS / 16).astype(np.float32)
IMAGES = PIXELS.reshape(-1, 1, 8, 8)


class Residual(torch.nn.Module):
    """A convolution around which a connection leads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.second = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.last = torch.nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last((x + self.norm(self.second(x))).relu().mean((2, 3)))


class Viewing(torch.nn.Module):
    """A network with a width written into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = torch.nn.Conv2d(1, 8, 3), torch.nn.Linear(288, 10)

    def forward(self, x):
        return self.last(self.conv(x).relu().view(-1, 288))


def gated() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.GLU(), torch.nn.Linear(16, 10))


def mlp(*sizes: int) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def cnn() -> torch.nn.Sequential:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10), nn.Softmax(1),
    )  # fmt: skip


def deadened(model: torch.nn.Module, last: str) -> torch.nn.Module:
    """Every second neuron and channel gives nothing but zero, in all layers but the last."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and name != last:
                module.weight[::2] = 0
                module.bias[::2] = 0
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean[1::2] = 0.3
                module.running_var[1::2] = 2.0
                module.bias[::2] = 0
    return model.eval()


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    model = mlp(64, 256, 128, 10)
    data = TrainingData(PIXELS[:1300], DIGITS[:1300], epochs=12)
    train_torch(model, data, torch_task_loss(data), torch_targets(data))
    return model


def accuracy(model: torch.nn.Module) -> float:
    answers = torch_subject("m", model).answer({"": PIXELS[1300:]})
    return float((answers.argmax(axis=1) == DIGITS[1300:]).mean())


@pytest.mark.parametrize(
    ("model", "last", "rows"),
    [(mlp(64, 32, 16, 10), "4", PIXELS), (cnn(), "9", IMAGES), (Residual(), "last", IMAGES)],
    ids=["dense", "convolutions", "residual"],
)
def test_neurons_that_do_nothing_go_and_the_answers_stay(
    model: torch.nn.Module, last: str, rows: np.ndarray
) -> None:
    model = deadened(model, last)
    before = copy.deepcopy(model.state_dict())
    pruned = prune(model, rows[:4], ratio=0.5)
    assert all(after == width // 2 for width, after in pruned.widths.values())
    assert pruned.kept == {last: "it gives the answer"}
    expected = torch_subject("a", model).answer({"": rows[:100]})
    found = torch_subject("b", pruned.model).answer({"": rows[:100]})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_fine_tuning_wins_back_what_pruning_lost(teacher: torch.nn.Module) -> None:
    data = TrainingData(PIXELS[:1300], DIGITS[:1300], epochs=5)
    plain, tuned = (
        prune(teacher, PIXELS[:4], ratio=0.75),
        prune(teacher, PIXELS[:4], ratio=0.75, fine_tuning=data),
    )
    assert accuracy(tuned.model) > accuracy(plain.model)
    assert accuracy(tuned.model) > accuracy(teacher) - 0.05
    assert len(tuned.losses) == 5
    assert tuned.losses[-1] < tuned.losses[0]


def test_masks_are_compression_only(teacher: torch.nn.Module) -> None:
    masked = mask(teacher, ratio=0.8)
    assert masked.method == MASKS
    assert "only compressed files get smaller" in masked.notes[0]
    weight = masked.model[0].weight
    assert weight.shape == teacher[0].weight.shape
    assert float((weight == 0).float().mean()) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("model", "rows", "why"),
    [
        (Viewing(), IMAGES, "a width is written into its code"),
        (gated(), PIXELS, "not understood"),
        (torch.nn.Sequential(torch.nn.Linear(64, 10)), PIXELS, "no layer can become narrower"),
    ],
    ids=["view", "glu", "single"],
)  # fmt: skip
def test_graphs_that_are_not_understood_are_refused(
    model: torch.nn.Module, rows: np.ndarray, why: str
) -> None:
    with pytest.raises(UnsupportedConversion, match=why):
        prune(model, rows[:4])


def test_impossible_wishes_are_refused(teacher: torch.nn.Module) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        prune(teacher, PIXELS[:4], ratio=1.0)
    with pytest.raises(ConfigError, match="no layer 'nine'"):
        prune(teacher, PIXELS[:4], keep=("nine",))
    assert "0" not in prune(teacher, PIXELS[:4], keep=("0",)).widths
    with pytest.raises(UnsupportedConversion, match="only PyTorch modules and Keras models"):
        prune(object(), PIXELS)
    with pytest.raises(DataError, match="3 rows and 2 labels"):
        TrainingData(PIXELS[:3], DIGITS[:2])


def test_a_student_learns_from_its_teacher(teacher: torch.nn.Module) -> None:
    data = TrainingData(PIXELS[:1300], DIGITS[:1300], epochs=30, learning_rate=3e-3)
    student = mlp(64, 24, 10)
    before = copy.deepcopy(teacher.state_dict())
    done = distill(teacher, student, data)
    assert done.losses[-1] < 0.3 * done.losses[0]
    assert accuracy(student) > accuracy(teacher) - 0.06
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_with_mix_1_the_labels_play_no_part(teacher: torch.nn.Module) -> None:
    wrong = TrainingData(PIXELS[:1300], (DIGITS[:1300] + 1) % 10, epochs=30, learning_rate=3e-3)
    taught, misled = mlp(64, 24, 10), mlp(64, 24, 10)
    distill(teacher, taught, wrong, mix=1.0)
    distill(teacher, misled, wrong, mix=0.0)
    assert accuracy(taught) > 0.8
    assert accuracy(misled) < 0.2


def test_students_that_do_not_fit_are_refused(teacher: torch.nn.Module) -> None:
    data = TrainingData(PIXELS[:100], DIGITS[:100])
    with pytest.raises(UnsupportedConversion, match=r"in shape \[7\] for each row"):
        distill(teacher, mlp(64, 8, 7), data)
    with pytest.raises(ConfigError, match="temperature above 0"):
        distill(teacher, mlp(64, 8, 10), data, temperature=0)
