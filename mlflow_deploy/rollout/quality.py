"""Compares how often two revisions were right, where labels come while a rollout goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlflow_deploy.config import AnalysisSpec
from mlflow_deploy.rollout.analysis import Verdict
from mlflow_deploy.rollout.sequential import share_bounds


@dataclass(frozen=True)
class Outcomes:
    """How many answers of a revision turned out right and how many wrong since the rollout began.

    For numbers, right means within `analysis.quality_tolerance` of the label.
    """

    right: int = 0
    wrong: int = 0

    @property
    def labelled(self) -> int:
        """Answers whose label has come."""
        return self.right + self.wrong


Labels = Callable[[], dict[int, Outcomes]]
"""Gives the outcomes by revision; a rollout asks it in each look when there is one."""


def judge_quality(stable: Outcomes, candidate: Outcomes, spec: AnalysisSpec) -> Verdict:
    """Whether the candidate is surely more often wrong than the stable revision by more than is allowed.

    The bounds are confidence sequences, as for errors: a candidate that is as often wrong as the stable
    revision is ever taken back for it with a probability of at most `spec.alpha`.
    """
    alpha = spec.alpha / 2
    wrong = share_bounds(candidate.wrong, candidate.labelled, alpha)
    usual = share_bounds(stable.wrong, stable.labelled, alpha)
    counts = f"{candidate.wrong} of {candidate.labelled} labelled answers wrong"
    against = f"stable {stable.wrong} of {stable.labelled}"
    if stable.labelled and wrong[0] > usual[1] + spec.max_quality_drop:
        return Verdict("failed", f"too often wrong: {counts}, {against}")
    if min(stable.labelled, candidate.labelled) < spec.min_requests:
        return Verdict(
            "undecided", f"too few labels to tell: {counts}, {against}, {spec.min_requests} are wanted"
        )
    known = max(spec.max_quality_drop, share_bounds(0, spec.min_requests, alpha)[1])
    rate = stable.wrong / stable.labelled
    if candidate.wrong / candidate.labelled > rate + spec.max_quality_drop or wrong[1] > rate + known:
        return Verdict("undecided", f"the quality is not yet known well enough: {counts}, {against}")
    return Verdict("passed", f"{counts}, {against}")
