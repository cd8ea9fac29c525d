"""Pruning and distillation of Keras networks: what is removed, what stays, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mlflow_deploy.conversion.distillation import distill
from mlflow_deploy.conversion.pruning import mask, prune
from mlflow_deploy.conversion.training import TrainingData, keras_subject
from mlflow_deploy.errors import ConfigError, UnsupportedConversion

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.slow

PIXELS, DIGITS = load_digits(return_X_y=True)
PIXELS = (PIXELS / 16).astype(np.float32)
IMAGES = PIXELS.reshape(-1, 8, 8, 1)


def mlp(hidden: int = 32):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    return keras.Sequential(
        [
            keras.layers.Input((64,)),
            dense(hidden, activation="relu"),
            dense(16, activation="relu"),
            dense(10, activation="softmax"),
        ]
    )


def branching():
    """Two convolutions joined side by side, normalised, pooled, convolved by channel."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    given = layers.Input((8, 8, 1))
    one = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(given)))
    two = layers.Conv2D(8, 3, padding="same", activation="relu")(given)
    joined = layers.DepthwiseConv2D(3, use_bias=False)(
        layers.MaxPooling2D()(layers.Concatenate()([one, two]))
    )
    dense = layers.Dense(32, activation="relu")(layers.Flatten()(joined))
    return keras.Model(given, layers.Dense(10, activation="softmax")(dense))


def residual():
    """Two layers that are added, and one after them."""
    layers = keras.layers
    given = layers.Input((64,))
    first = layers.Dense(16, activation="relu")(given)
    second = layers.Dense(16, activation="relu")(first)
    after = layers.Dense(8, activation="relu", name="after")(layers.Add(name="sum")([first, second]))
    return keras.Model(given, layers.Dense(10)(after))


def deadened(model):
    """Every second neuron and channel gives nothing but zero, in all layers but the last."""
    for layer in model.layers[:-1]:
        if type(layer).__name__ in ("Dense", "Conv2D"):
            kernel, bias = layer.get_weights()
            kernel[..., ::2], bias[::2] = 0, 0
            layer.set_weights([kernel, bias])
        if type(layer).__name__ == "BatchNormalization":
            gamma, beta, mean, variance = layer.get_weights()
            beta[1::2], mean[1::2], variance[1::2] = 0.2, 0.3, 2.0
            layer.set_weights([gamma, beta, mean, variance])
    return model


@pytest.mark.parametrize(("make", "rows"), [(mlp, PIXELS), (branching, IMAGES)], ids=["dense", "branches"])
def test_neurons_that_do_nothing_go_and_the_answers_stay(make, rows) -> None:
    model = deadened(make())
    pruned = prune(model, rows[:4], ratio=0.5)
    assert all(after == width // 2 for width, after in pruned.widths.values())
    assert pruned.kept == {model.layers[-1].name: "it gives the answer"}
    np.testing.assert_allclose(np.asarray(pruned.model(rows[:100])), np.asarray(model(rows[:100])), atol=1e-6)


def test_sums_are_left_whole_and_named() -> None:
    pruned = prune(residual(), PIXELS[:4])
    assert pruned.widths == {"after": (8, 4)}
    assert set(pruned.kept.values()) == {
        "sum (Add) takes it, which is not understood",
        "it gives the answer",
    }


def test_what_cannot_be_pruned_is_refused() -> None:
    layers = keras.layers
    lstm = keras.Sequential([layers.Input((8, 8)), layers.LSTM(8), layers.Dense(10)])
    with pytest.raises(UnsupportedConversion, match="it gives the answer"):
        prune(lstm, IMAGES[:4, :, :, 0])
    with pytest.raises(ConfigError, match="no layer 'nine'"):
        prune(mlp(), PIXELS[:4], keep=("nine",))
    shared = layers.Dense(64, activation="relu", name="shared")
    given = layers.Input((64,))
    twice = keras.Model(given, layers.Dense(10)(shared(shared(given))))
    with pytest.raises(UnsupportedConversion, match="shared is used more than once"):
        prune(twice, PIXELS[:4])


def test_training_pruning_and_distilling_keep_the_accuracy() -> None:
    data = TrainingData(PIXELS[:1300], DIGITS[:1300], epochs=12)

    def accuracy(model) -> float:
        answers = keras_subject("m", model).answer({"": PIXELS[1300:]})
        return float((answers.argmax(axis=1) == DIGITS[1300:]).mean())

    teacher, student = mlp(64), mlp(16)
    distill(teacher, teacher, data, mix=0.0)
    assert accuracy(teacher) > 0.85
    tuned = prune(teacher, PIXELS[:4], fine_tuning=data)
    assert accuracy(tuned.model) > accuracy(teacher) - 0.05
    wrong = TrainingData(PIXELS[:1300], (DIGITS[:1300] + 1) % 10, epochs=20, learning_rate=5e-3)
    distill(teacher, student, wrong, mix=1.0)
    assert accuracy(student) > 0.75
    zeros = mask(teacher, ratio=0.8).model.get_weights()[0]
    assert float((zeros == 0).mean()) == pytest.approx(0.8, abs=0.01)
