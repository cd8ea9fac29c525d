"""Comparisons of answers keep their error rates, find what differs, and count what they could not see."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from mlflow_deploy.config import AnalysisSpec
from mlflow_deploy.gateway.stats import CallStats
from mlflow_deploy.rollout import disagreement
from mlflow_deploy.rollout.disagreement import Disagreement
from mlflow_deploy.rollout.quality import Outcomes, judge_quality
from mlflow_deploy.rollout.shift import AnswerShift
from mlflow_deploy.serving.recorder import Record
from mlflow_deploy.targets.base_records import ShadowReport

SPEC = AnalysisSpec()


def record(request_id: object, predictions: Any, *, status: int = 200, digest: int = 1) -> Record:
    body = (
        predictions if isinstance(predictions, bytes) else msgspec.json.encode({"predictions": predictions})
    )
    request = b'{"instances": [1, 2, 3]}'
    kinds = ("application/json identity",) * 2
    return Record(0, str(request_id), "/", status, 0.0, digest, request, kinds[0], body, kinds[1])


def report(comparison: Disagreement) -> ShadowReport:
    return comparison.report(CallStats(), CallStats(), lost=0, oversized=0)


# --- row by row --------------------------------------------------------------------------------------------


def test_rows_are_joined_in_whatever_order_they_come() -> None:
    comparison = Disagreement(SPEC)
    comparison.add([record(at, [at, at]) for at in range(10)], stable=True)
    comparison.add([record(at, [at, at + (at == 3)]) for at in reversed(range(8))], stable=False)
    comparison.add([record(at, [at, at]) for at in (20, 8, 9)], stable=False)
    comparison.add([record(20, [20, 20])], stable=True)
    found = report(comparison)
    assert (found.requests, found.rows, found.different) == (11, 22, 1)
    assert found.disagreement == pytest.approx(0.5 / 11)
    (worst,) = found.worst
    assert (worst.request_id, worst.row, worst.stable, worst.candidate) == ("3", 1, "3", "4")
    assert worst.distance == pytest.approx(1 / (0.01 * 3 + 1e-6))


def test_an_id_that_clients_repeat_is_told_apart_by_the_body() -> None:
    comparison = Disagreement(SPEC)
    comparison.add([record("same", [1.0], digest=1), record("same", [2.0], digest=2)], stable=True)
    comparison.add([record("same", [2.0], digest=2), record("same", [1.0], digest=1)], stable=False)
    assert (report(comparison).requests, report(comparison).different) == (2, 0)


@pytest.mark.parametrize(
    ("stable", "candidate", "differs"),
    [
        (1.0, 1.005, False),
        (1.0, 1.02, True),
        (0.0, 5e-7, False),
        (0.0, 1e-5, True),
        ("a", "a", False),
        ("a", "b", True),
        (1, "1", True),
        (True, False, True),
        (None, None, False),
        (None, 1.0, True),
        ([1.0, 2.0], [1.0, 2.5], True),
        ([1.0, 2.0], [1.0], True),
    ],
)
def test_what_counts_as_different(stable: Any, candidate: Any, differs: bool) -> None:
    comparison = Disagreement(SPEC)
    comparison.add([record(1, [stable])], stable=True)
    comparison.add([record(1, [candidate])], stable=False)
    assert report(comparison).different == differs


def test_worst_rows_come_first_and_are_few() -> None:
    comparison = Disagreement(SPEC)
    comparison.add([record(at, [1.0]) for at in range(20)] + [record("label", ["a"])], stable=True)
    comparison.add([record(at, [2.0 + at]) for at in range(20)] + [record("label", ["b"])], stable=False)
    worst = report(comparison).worst
    assert [row.request_id for row in worst] == ["label", "19", "18", "17", "16"]
    assert worst[0].distance is None


def test_failed_missing_and_unreadable_answers() -> None:
    comparison = Disagreement(SPEC)
    comparison.add(
        [record(1, [1, 2]), record(2, [1, 2]), record(3, b"?"), record(4, b"", status=500)], stable=True
    )
    comparison.add([record(1, b"", status=500), record(2, [1]), record(3, [1]), record(4, [1])], stable=False)
    comparison.add([record(5, [1])], stable=True)
    comparison.add([record(5, b"", status=429)], stable=False)
    found = report(comparison)
    assert (found.requests, found.different, found.unreadable, found.busy) == (2, 4, 1, 1)
    assert [row.candidate for row in found.worst] == ["status 500", "1 rows"]


def test_answers_without_another_side_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = Disagreement(SPEC)
    monkeypatch.setattr(disagreement, "_WAITING_BYTES", 400)
    comparison.add([record(at, [1.0]) for at in range(100)], stable=True)
    assert 80 < report(comparison).unmatched < 100
    monkeypatch.setattr(disagreement, "_WAIT_SECONDS", -1.0)
    comparison.add([record(at, [1.0]) for at in range(200, 300)], stable=False)
    assert report(comparison).unmatched == 200 - report(comparison).requests * 2


@pytest.mark.parametrize(
    ("requests", "different", "decision"),
    [
        (0, 0, "undecided"),
        (99, 0, "undecided"),
        (100, 0, "passed"),
        (200, 30, "failed"),
        (2000, 25, "undecided"),
    ],
)
def test_verdict_on_rows(requests: int, different: int, decision: str) -> None:
    comparison = Disagreement(SPEC)
    comparison.add([record(at, [1.0]) for at in range(requests)], stable=True)
    comparison.add([record(at, [1.0 + (at < different)]) for at in range(requests)], stable=False)
    assert comparison.verdict().decision == decision


def test_rows_of_one_request_do_not_count_as_many() -> None:
    """One odd request of a thousand rows is no proof that a percent of all rows differ."""
    comparison = Disagreement(SPEC)
    comparison.add([record(at, [1.0] * 100) for at in range(150)], stable=True)
    comparison.add([record(at, [1.0 + (at == 7)] * 100) for at in range(150)], stable=False)
    assert report(comparison).different == 100
    assert comparison.verdict().decision != "failed"


# --- distribution ------------------------------------------------------------------------------------------


def sides(draw: Any, draw_other: Any, looks: int, each: int, spec: AnalysisSpec = SPEC) -> list[str]:
    """The verdicts while both samples grow."""
    comparison, verdicts = AnswerShift(spec), []
    for look in range(looks):
        ids = range(look * each, (look + 1) * each)
        for stable, of in ((True, draw), (False, draw_other)):
            records = [record(f"{stable}{at}", [value]) for at, value in zip(ids, of(each), strict=True)]
            comparison.add(records, stable=stable)
        verdicts.append(comparison.verdict().decision)
    return verdicts


@pytest.mark.parametrize("labels", [True, False])
def test_equal_distributions_pass_and_shifted_ones_fail(labels: bool) -> None:
    generator = np.random.default_rng(1)

    def draw(shift: float) -> Any:
        if labels:
            shares = [0.5 - shift, 0.3, 0.2 + shift]
            return lambda count: [str(each) for each in generator.choice(["a", "b", "c"], count, p=shares)]
        return lambda count: generator.normal(2.5 * shift, 1, count).tolist()

    assert sides(draw(0), draw(0), 20, 50)[0] == "undecided"
    assert sides(draw(0), draw(0), 20, 50)[-1] == "passed"
    assert sides(draw(0), draw(0.45), 20, 50)[-1] == "failed"


def test_shift_is_rarely_seen_where_it_is_within_the_limit() -> None:
    """At the very limit, where a false alarm is likeliest, at most alpha of the rollouts may ever fail."""
    generator = np.random.default_rng(2)
    spec = AnalysisSpec(alpha=0.1, max_answer_shift=0.2, min_requests=20)
    failed = sum(
        "failed"
        in sides(
            lambda count: (generator.random(count) < 0.3).tolist(),
            lambda count: (generator.random(count) < 0.5).tolist(),
            10,
            20,
            spec,
        )
        for _ in range(40)
    )
    assert failed <= 0.1 * 40


def test_missing_answers_and_several_values_are_compared() -> None:
    generator = np.random.default_rng(3)
    stable = lambda count: [[1.0, float(v)] for v in generator.normal(size=count)]  # noqa: E731
    gone = lambda count: [[1.0, None]] * count  # noqa: E731
    assert sides(stable, gone, 10, 50)[-1] == "failed"


def test_failed_and_unreadable_answers_are_no_distribution() -> None:
    comparison = AnswerShift(SPEC)
    comparison.add([record(1, b"", status=500), record(2, b"?"), record(3, [])], stable=False)
    assert comparison.verdict().reason == (
        "too few answers to compare: 0 beside 0 of the stable revision, 1 could not be read"
    )


# --- quality -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stable", "candidate", "decision"),
    [
        (Outcomes(0, 0), Outcomes(0, 500), "undecided"),
        (Outcomes(450, 50), Outcomes(40, 10), "undecided"),
        (Outcomes(900, 100), Outcomes(300, 200), "failed"),
        (Outcomes(9000, 1000), Outcomes(4500, 500), "passed"),
        (Outcomes(900, 100), Outcomes(90, 30), "undecided"),
    ],
)
def test_verdict_on_quality(stable: Outcomes, candidate: Outcomes, decision: str) -> None:
    verdict = judge_quality(stable, candidate, SPEC)
    assert verdict.decision == decision, verdict
    assert f"{candidate.wrong} of {candidate.labelled} labelled answers wrong" in verdict.reason
