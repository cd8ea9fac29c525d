"""The analysis keeps its declared error rates, and says when it cannot tell."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_deploy.config import AnalysisSpec
from mlflow_deploy.gateway.stats import CallStats, Latency
from mlflow_deploy.rollout.analysis import analyse
from mlflow_deploy.rollout.sequential import share_bounds

SPEC = AnalysisSpec()


def stats(requests: int, errors: int = 0, milliseconds: float = 3.0) -> CallStats:
    """Answers that all took about the same time."""
    return CallStats(
        requests=requests,
        succeeded=requests - errors,
        server_errors=errors,
        latency=Latency({(milliseconds, 1.0): requests} if requests else {}),
    )


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_bounds_hold_at_every_look_at_once(share: float) -> None:
    generator = np.random.default_rng(3)
    alpha, missed = 0.1, 0
    for _ in range(100):
        hits = np.cumsum(generator.random(400) < share)
        looks = [(int(hits[n - 1]), n) for n in range(10, 401, 10)]
        bounds = [share_bounds(*look, alpha) for look in looks]
        missed += any(not lower <= share <= upper for lower, upper in bounds)
    assert missed <= 0.1 * 100


def test_bounds_close_in_on_the_share() -> None:
    lower, upper = share_bounds(500, 5000, 0.01)
    assert 0.08 < lower < 0.1 < upper < 0.12
    assert share_bounds(0, 0, 0.01) == (0.0, 1.0)
    assert share_bounds(3, 3, 0.01)[1] == 1.0
    with pytest.raises(ValueError, match="2 of 1"):
        share_bounds(2, 1, 0.01)


@pytest.mark.parametrize(
    ("stable", "candidate", "decision", "reason"),
    [
        (stats(500), stats(0), "undecided", "too few requests"),
        (stats(500), stats(99), "undecided", "too few requests"),
        (stats(500), stats(200), "passed", "0 errors in 200 requests, stable 0 in 500"),
        (stats(500), stats(200, errors=60), "failed", "too many errors: 60 errors in 200"),
        (stats(500), stats(30, errors=30), "failed", "too many errors"),
        (stats(0), stats(60, errors=30), "failed", "too many errors"),
        (stats(500, errors=150), stats(200, errors=60), "undecided", "not yet known well enough"),
        (stats(500), stats(200, milliseconds=150), "failed", "times the p95"),
        (stats(500), stats(200, milliseconds=5), "passed", ""),
        (stats(0), stats(200, milliseconds=500), "passed", "p95"),
    ],
)
def test_verdicts(stable: CallStats, candidate: CallStats, decision: str, reason: str) -> None:
    verdict = analyse(stable, candidate, SPEC)
    assert verdict.decision == decision, verdict
    assert reason in verdict.reason


def test_absolute_latency_limit() -> None:
    spec = AnalysisSpec(max_latency_ms=100, max_latency_ratio=0)
    assert analyse(stats(0), stats(200, milliseconds=150), spec).decision == "failed"
    assert analyse(stats(0), stats(200, milliseconds=50), spec).decision == "passed"


def test_candidate_that_refuses_more_requests_fails() -> None:
    stable = CallStats(requests=500, client_errors=50, succeeded=450)
    usual = CallStats(requests=300, client_errors=30, succeeded=270)
    picky = CallStats(requests=300, client_errors=200, succeeded=100)
    assert analyse(stable, usual, SPEC).decision == "passed"
    verdict = analyse(stable, picky, SPEC)
    assert (verdict.decision, verdict.reason) == (
        "failed",
        "too many requests refused with a status of 4xx: 200 of 300 requests, stable 50 of 500",
    )
    # A stable revision without requests cannot tell how many clients ask for nonsense.
    assert analyse(CallStats(), picky, SPEC).decision == "passed"


def test_equal_revisions_are_rarely_rolled_back_and_bad_ones_nearly_always() -> None:
    generator = np.random.default_rng(5)

    def ever_failed(candidate_rate: float, stable_rate: float = 0.02) -> bool:
        stable = np.cumsum(generator.random(1000) < stable_rate)
        candidate = np.cumsum(generator.random(500) < candidate_rate)
        return any(
            analyse(stats(2 * n, int(stable[2 * n - 1])), stats(n, int(candidate[n - 1])), SPEC).decision
            == "failed"
            for n in range(10, 501, 10)
        )

    assert sum(ever_failed(0.02) for _ in range(200)) <= 2
    assert sum(ever_failed(0.25) for _ in range(40)) >= 39
