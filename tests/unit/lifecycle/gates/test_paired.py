"""The comparison of two models on the same rows: right values, honest intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    brier_score_loss,
    f1_score,
    log_loss,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from mlflow_deploy.errors import DataError
from mlflow_deploy.lifecycle.gates.paired import compare
from mlflow_deploy.monitoring.answers import Answers, pair
from mlflow_deploy.monitoring.tables import open_table


def answers(truth: np.ndarray, predicted: np.ndarray) -> Answers:
    return pair(open_table(pd.DataFrame({"y": truth})), "y", predicted)


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and the probabilities of a better and of a worse model."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 600)
    hidden = truth + rng.normal(0, 1, 600)
    better = 1 / (1 + np.exp(-2 * (hidden - 0.5)))
    worse = 1 / (1 + np.exp(-2 * (hidden + rng.normal(0, 1, 600) - 0.5)))
    return truth, better, worse


@pytest.mark.parametrize(
    ("metric", "known", "sign"),
    [
        ("roc_auc", roc_auc_score, 1),
        ("log_loss", log_loss, -1),
        ("brier", brier_score_loss, -1),
        ("f1", lambda truth, score: f1_score(truth, score >= 0.5), 1),
    ],
)
def test_values_are_those_of_scikit_learn(
    scores: tuple[np.ndarray, ...], metric: str, known: object, sign: int
) -> None:
    truth, better, worse = scores
    found = compare(answers(truth, better), answers(truth, worse), metric)
    assert found.candidate == pytest.approx(known(truth, better))  # type: ignore[operator]
    assert found.champion == pytest.approx(known(truth, worse))  # type: ignore[operator]
    assert found.gain == pytest.approx(sign * (found.candidate - found.champion))
    assert 0 < found.low < found.gain < found.high
    turned = compare(answers(truth, worse), answers(truth, better), metric)
    assert turned.high < 0


def test_regression() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(10, 3, 400)
    better, worse = truth + rng.normal(0, 1, 400), truth + rng.normal(0, 2, 400)
    for metric, known in (("rmse", root_mean_squared_error), ("r2", r2_score)):
        found = compare(answers(truth, better), answers(truth, worse), metric)
        assert found.candidate == pytest.approx(known(truth, better))
        assert 0 < found.low < found.gain < found.high
    with pytest.raises(DataError, match="is for classification"):
        compare(answers(truth, better), answers(truth, worse), "accuracy")


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc"])
def test_the_interval_holds_the_truth_as_often_as_it_says(metric: str) -> None:
    """Two models of equal quality, 40 draws: the interval has 0 in about 38 of them."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(40):
        truth = rng.integers(0, 2, 200)
        hidden = truth + rng.normal(0, 1, 200)
        one, two = (1 / (1 + np.exp(-(hidden + rng.normal(0, 1, 200) - 0.5))) for _ in range(2))
        found = compare(answers(truth, one), answers(truth, two), metric)
        held += found.low <= 0 <= found.high
    assert 34 <= held <= 40


def test_equal_answers_have_no_difference(scores: tuple[np.ndarray, ...]) -> None:
    truth, better, _ = scores
    found = compare(answers(truth, better), answers(truth, better), "accuracy")
    assert (found.gain, found.low, found.high, found.rows) == (0.0, 0.0, 0.0, 600)


def test_labels_have_no_auc(scores: tuple[np.ndarray, ...]) -> None:
    truth, better, _ = scores
    labels = answers(truth, (better > 0.5).astype(int))
    with pytest.raises(DataError, match="needs a model that answers the probability"):
        compare(labels, labels, "roc_auc")
