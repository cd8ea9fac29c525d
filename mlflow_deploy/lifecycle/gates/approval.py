"""Gate `approval`: the people whose word is needed have given it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mlflow_deploy.lifecycle.approvals import read_approvals
from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext


class ApprovalGate(Gate):
    """Reads the version's tags; the stage's `approvals` say how many and whose words count."""

    name: ClassVar[str] = "approval"
    loads_model: ClassVar[bool] = False
    settings_type: ClassVar[type[GateSettings]] = GateSettings

    def check(self, context: GateContext) -> Verdict:
        model, stage = context.model, context.stage
        if not model.name:
            return failed("only a registered version can be approved")
        rules = stage.approvals
        needed = max(1, rules.needed)
        words = read_approvals(model.name, model.version, stage.name)
        counted = [
            person
            for person in sorted(words.approved)
            if (not rules.by or person in rules.by) and (rules.allow_requester or person != context.requester)
        ]
        evidence = {
            "needed": needed,
            "by": list(rules.by),
            "approved_by": counted,
            "approved": dict(words.approved),
            "rejected": dict(words.rejected),
        }
        if words.rejected:
            person, comment = next(iter(sorted(words.rejected.items())))
            return failed(f"{person} has rejected it" + (f": {comment}" if comment else ""), **evidence)
        if len(counted) >= needed:
            return passed(f"approved by {', '.join(counted)}", **evidence)
        others = sorted(set(words.approved) - set(counted))
        not_counted = f"; the approval of {', '.join(others)} does not count" if others else ""
        whose = f" of {', '.join(rules.by)}" if rules.by else ""
        return failed(
            f"{len(counted)} of {needed} approvals{whose}{not_counted}; give one with `mlflow-deploy approve "
            f"{model.name} {model.version} --stage {stage.name}`",
            **evidence,
        )
