"""Everything a rollout looks at in a step: what the gateway counted, what was answered, what labels say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from mlflow_deploy.config import DeploymentSpec
from mlflow_deploy.gateway.stats import CallStats, Latency
from mlflow_deploy.rollout.analysis import Verdict, analyse, together
from mlflow_deploy.rollout.disagreement import Disagreement
from mlflow_deploy.rollout.quality import Labels, Outcomes, judge_quality
from mlflow_deploy.rollout.recording import Recording
from mlflow_deploy.rollout.shift import AnswerShift
from mlflow_deploy.rollout.strategies import Step
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord, ShadowReport


class Evidence:
    """What speaks for and against a candidate.

    Errors are counted since the rollout began. Latency and answers are compared within a step, where both sides
    have the same machine and the same requests at the same time.

    Attributes:
        rows: the comparison row by row, once a step has asked for it.
    """

    def __init__(
        self, target: Target, spec: DeploymentSpec, stable: int, candidate: int, labels: Labels | None
    ) -> None:
        self.rows: Disagreement | None = None
        self._target, self._spec, self._labels = target, spec, labels
        self._stable, self._candidate = stable, candidate
        self._begun: Mapping[int, CallStats] = {}
        self._entered: Mapping[int, CallStats] = {}
        self._usual = Latency()
        self._seen: Mapping[int, CallStats] = {}
        self._recording = Recording(target)
        self._shift: AnswerShift | None = None

    def begin(self, record: DeploymentRecord) -> None:
        """Count from now on."""
        self._begun = self._target.stats(record)

    def enter(self, record: DeploymentRecord, step: Step, shifts: int) -> None:
        """Begin with a step; answers are compared anew in each, since its shares are fixed only within it.

        Args:
            shifts: steps of the rollout in which distributions are compared; they share the error probability.
        """
        self._shift, self._entered = None, self._target.stats(record)
        compares = step.compare if self._recording.possible else "nothing"
        if compares == "rows":
            self.rows = Disagreement(self._spec.analysis)
        elif compares == "distribution" and self._spec.analysis.max_answer_shift:
            self._shift = AnswerShift(self._spec.analysis, 1 / max(shifts, 1))
        if self._comparing(step):
            # What was recorded before the shares were those of this step is thrown away.
            self._recording.read(record, self._stable, self._candidate)
        self.look(record, step)

    def look(self, record: DeploymentRecord, step: Step) -> Verdict:
        """What everything together says now."""
        stats = self._target.stats(record)
        self._seen, here = _since(stats, self._begun), _since(stats, self._entered)
        # A stable revision without requests is known from the step before.
        self._usual = here[self._stable].latency if here[self._stable].requests else self._usual
        spec = self._spec.analysis
        verdicts = [
            analyse(
                replace(self._seen[self._stable], latency=self._usual),
                replace(self._seen[self._candidate], latency=here[self._candidate].latency),
                spec,
            )
        ]
        if self._comparing(step):
            self._compare(record)
        if self.rows is not None and step.compare == "rows":
            verdicts.append(self.rows.verdict())
        if self._shift is not None:
            verdicts.append(self._shift.verdict())
        if self._labels is not None:
            known = self._labels()
            stable, candidate = (known.get(each, Outcomes()) for each in (self._stable, self._candidate))
            # Most deployments never get a label; the others are judged from the first one on.
            if stable.labelled or candidate.labelled:
                verdicts.append(judge_quality(stable, candidate, spec))
        return together(verdicts)

    def answered(self) -> int:
        """Requests that the candidate has answered since the rollout began."""
        return self._seen[self._candidate].requests

    def report(self) -> ShadowReport | None:
        """How the answers compared row by row; None when they were not."""
        if self.rows is None:
            return None
        stable, candidate = (self._seen.get(each, CallStats()) for each in (self._stable, self._candidate))
        lost, oversized = self._recording.lost, self._recording.oversized
        return self.rows.report(stable, candidate, lost=lost, oversized=oversized)

    def end(self, record: DeploymentRecord) -> None:
        """Have nothing recorded any more."""
        self._recording.stop(record, self._stable, self._candidate)

    def _comparing(self, step: Step) -> bool:
        return self._shift is not None or (self.rows is not None and step.compare == "rows")

    def _compare(self, record: DeploymentRecord) -> None:
        if not self._recording.due():
            return
        for number, records in self._recording.read(record, self._stable, self._candidate).items():
            for comparison in (self.rows, self._shift):
                if comparison is not None:
                    comparison.add(records, stable=number == self._stable)


def _since(now: Mapping[int, CallStats], earlier: Mapping[int, CallStats]) -> Mapping[int, CallStats]:
    """What came in between, for every revision that somebody may ask for."""
    empty = CallStats()
    found: defaultdict[int, CallStats] = defaultdict(CallStats)
    return found | {number: stats.since(earlier.get(number, empty)) for number, stats in now.items()}
