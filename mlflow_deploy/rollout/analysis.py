"""Analysis: does the candidate answer as well as the stable revision? Decides go on, wait or roll back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from mlflow_deploy.config import AnalysisSpec
from mlflow_deploy.gateway.stats import CallStats, Latency
from mlflow_deploy.rollout.sequential import share_bounds

# Of the answers of the stable revision, 5 % are slower than its 95th percentile by definition. The candidate
# is called slower when surely more than this share of its answers are slower than the allowed multiple of it.
_SLOW_SHARE = 0.10
_SLOW_QUANTILE = 0.95
# Errors and refusals of both sides and the share of slow answers are bounded; each gets its part of alpha.
_BOUNDS = 5


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the numbers say.

    Attributes:
        decision: `passed`, `failed`, or `undecided` when there were too few requests to tell.
        reason: the numbers behind it, for people.
    """

    decision: Literal["passed", "failed", "undecided"]
    reason: str


def analyse(stable: CallStats, candidate: CallStats, spec: AnalysisSpec) -> Verdict:
    """Compare what both revisions answered since the rollout began.

    Every bound is a confidence sequence, so it may be asked after every request; the probability that a
    candidate that fails and refuses requests as rarely as the stable revision is ever rolled back for that is
    at most `spec.alpha`. The latency check has no such promise: its limit is an estimate that moves with the
    stable revision's p95.
    """
    alpha = spec.alpha / _BOUNDS
    errors = share_bounds(candidate.server_errors, candidate.requests, alpha)
    expected = share_bounds(stable.server_errors, stable.requests, alpha)
    counts = f"{candidate.server_errors} errors in {candidate.requests} requests"
    against = f"stable {stable.server_errors} in {stable.requests}"
    # The margin may not excuse a candidate that a stable revision without traffic cannot be compared with.
    allowed = (expected[1] if stable.requests else 0.0) + spec.max_error_increase
    if errors[0] > allowed:
        return Verdict("failed", f"too many errors: {counts}, {against}")
    refused = share_bounds(candidate.client_errors, candidate.requests, alpha)
    usual_refused = share_bounds(stable.client_errors, stable.requests, alpha)
    # Both sides get the same mixture of requests, so one that refuses more is busy, or takes other inputs.
    if stable.requests and refused[0] > usual_refused[1] + spec.max_error_increase:
        ours = f"{candidate.client_errors} of {candidate.requests} requests"
        theirs = f"stable {stable.client_errors} of {stable.requests}"
        return Verdict("failed", f"too many requests refused with a status of 4xx: {ours}, {theirs}")
    slow = _slower(stable.latency, candidate.latency, spec.max_latency_ratio, alpha)
    if slow:
        return Verdict("failed", slow)
    p95 = candidate.p95_ms
    if spec.max_latency_ms and p95 is not None and candidate.requests >= spec.min_requests:
        over = _share_above(candidate.latency, spec.max_latency_ms)
        if share_bounds(*over, alpha)[0] > 1 - _SLOW_QUANTILE:
            return Verdict("failed", f"too slow: p95 {p95:.0f} ms, allowed are {spec.max_latency_ms:g} ms")
    if candidate.requests < spec.min_requests:
        return Verdict("undecided", f"too few requests to tell: {counts}, {spec.min_requests} are wanted")
    usual = stable.server_errors / stable.requests if stable.requests else 0.0
    above = candidate.server_errors / candidate.requests - usual
    if above > spec.max_error_increase or errors[1] > usual + _resolution(spec, candidate.requests):
        return Verdict("undecided", f"the error rate is not yet known well enough: {counts}, {against}")
    return Verdict("passed", f"{counts}, {against}" + (f", p95 {p95:.0f} ms" if p95 is not None else ""))


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict from several: failed when one failed, passed when all passed."""
    failed = [verdict for verdict in verdicts if verdict.decision == "failed"]
    if failed:
        return Verdict("failed", "; ".join(verdict.reason for verdict in failed))
    passed = all(verdict.decision == "passed" for verdict in verdicts)
    return Verdict("passed" if passed else "undecided", "; ".join(verdict.reason for verdict in verdicts))


def _resolution(spec: AnalysisSpec, requests: int) -> float:
    """How far above the stable error rate the candidate's upper bound may lie in a pass.

    The margin itself, or what no errors at all would leave open with the wanted number of requests, whichever
    is larger: otherwise a pass would be out of reach for the sample that was asked for.
    """
    sample = min(requests, max(spec.min_requests, 1))
    return max(spec.max_error_increase, share_bounds(0, sample, spec.alpha / _BOUNDS)[1])


def _slower(stable: Latency, candidate: Latency, ratio: float, alpha: float) -> str:
    """Why the candidate is too slow, or an empty string."""
    usual = stable.quantile(_SLOW_QUANTILE)
    if usual is None or not ratio:
        return ""
    # Envoy counts whole milliseconds, so below a few of them a ratio says nothing.
    limit = max(usual * ratio, usual + 5.0)
    slow, answers = _share_above(candidate, limit)
    if share_bounds(slow, answers, alpha)[0] <= _SLOW_SHARE:
        return ""
    return (
        f"too slow: {slow} of {answers} answers took more than {limit:.0f} ms, "
        f"{ratio:g} times the p95 of the stable revision ({usual:.0f} ms)"
    )


def _share_above(latency: Latency, limit: float) -> tuple[int, int]:
    """How many answers took longer than `limit` milliseconds, and how many there are."""
    answers = sum(latency.bins.values())
    return sum(count for (lower, _), count in latency.bins.items() if lower >= limit), answers
