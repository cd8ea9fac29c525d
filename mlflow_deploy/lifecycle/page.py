"""A version's page in MLflow: how its way to a stage ended, as tags and as a section of its description."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlflow_deploy.lifecycle.registry import registry_changes

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.report import GateReport
    from mlflow_deploy.lifecycle.promotion import Promotion

PREFIX = "deploy"
"""The tags are `deploy.<what>.<stage>`."""

_FIELDS = (
    "outcome", "reason", "deployment", "target", "revision", "url", "gates", "evidence", "at", "by",
)  # fmt: skip
_TAG_CHARACTERS = 4000
_DESCRIPTION_CHARACTERS = 5000
"""What MLflow's SQL store keeps of a description."""
_SUMMARY_CHARACTERS = 160


def write_page(promotion: Promotion, evidence: str) -> None:
    """Write the outcome to the version: one tag for each fact, and the section of this stage.

    What is of other stages, and what people have written themselves, stays.

    Args:
        evidence: URI of the gates' report; empty when there is none.

    Raises:
        DeployError: the registry cannot be written.
    """
    import mlflow

    plan = promotion.plan
    with registry_changes(f"the page of {plan.model_uri}"):
        client = mlflow.MlflowClient()
        found = client.get_model_version(plan.model, plan.version)
        facts = _facts(promotion, evidence)
        for field in _FIELDS:
            key = f"{PREFIX}.{field}.{plan.stage}"
            if facts.get(field):
                client.set_model_version_tag(plan.model, plan.version, key, facts[field][:_TAG_CHARACTERS])
            elif key in found.tags:
                client.delete_model_version_tag(plan.model, plan.version, key)
        text = described(found.description or "", promotion, evidence)
        if text != (found.description or ""):
            client.update_model_version(plan.model, plan.version, text)


def outcome_of(tags: Mapping[str, str], stage: str) -> dict[str, str]:
    """What `write_page` has written of a stage, by field."""
    found = {field: tags.get(f"{PREFIX}.{field}.{stage}", "") for field in _FIELDS}
    return {field: value for field, value in found.items() if value}


def described(before: str, promotion: Promotion, evidence: str) -> str:
    """A description with the section of this stage replaced, or added at the end.

    MLflow keeps 5,000 characters. Where there is no room for the whole section, it is its first lines only;
    where there is none for these either, the description stays as it is: people's own words go first.
    """
    stage = promotion.plan.stage
    begin, end = f"<!-- mlflow-deploy:{stage} -->", f"<!-- /mlflow-deploy:{stage} -->"
    own = re.compile(rf"\n*{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    rest = own.sub("", before)
    lines = _section(promotion, evidence)
    for content in ("\n".join(lines), "\n".join(lines[:3])):
        section = f"{begin}\n{content}\n{end}"
        text = f"{rest}\n\n{section}" if rest.strip() else section
        if len(text) <= _DESCRIPTION_CHARACTERS:
            return text
    return rest


def _facts(promotion: Promotion, evidence: str) -> dict[str, str]:
    deployed = promotion.deployment or {}
    plan = promotion.plan
    return {
        "outcome": promotion.outcome,
        "reason": promotion.reason,
        "deployment": plan.deployment,
        "target": plan.target if plan.deployment else "",
        "revision": str(deployed.get("revision", "")),
        "url": str(deployed.get("url", "")),
        "gates": _in_short(promotion.gates),
        "evidence": evidence,
        "at": promotion.at,
        "by": promotion.by,
    }


def _in_short(report: GateReport | None) -> str:
    return ", ".join(f"{each.name}={each.outcome}" for each in report.results) if report else ""


def _section(promotion: Promotion, evidence: str) -> list[str]:
    """The section as lines of Markdown; the first three are enough to understand it."""
    plan, deployed = promotion.plan, promotion.deployment or {}
    lines = [f"### {plan.stage}: {_headline(promotion)}", ""]
    if promotion.reason:
        lines += [f"**Why:** {_escaped(promotion.reason, 600)}", ""]
    lines.append(f"By {_escaped(promotion.by)} at {promotion.at}.")
    if deployed.get("url"):
        lines.append(f"It answers at {deployed['url']} on target {plan.target}.")
    if promotion.gates and promotion.gates.results:
        lines += ["", "| gate | outcome | finding |", "|---|---|---|"]
        lines += [
            f"| {each.name} | {each.outcome}{' (optional)' if each.optional else ''}"
            f"{f' (found {each.found_at})' if each.found_at else ''} | "
            f"{_escaped(each.summary, _SUMMARY_CHARACTERS)} |"
            for each in promotion.gates.results
        ]
    if evidence:
        lines += ["", f"Evidence: {_link(evidence)}"]
    return lines


def _headline(promotion: Promotion) -> str:
    plan, deployed = promotion.plan, promotion.deployment or {}
    if promotion.outcome == "promoted" and deployed:
        return f"deployed as revision {deployed['revision']} of {plan.deployment}"
    words = {
        "promoted": "promoted",
        "refused": "refused, nothing was deployed",
        "failed": "failed, not promoted",
    }
    return words[promotion.outcome]


def _link(evidence: str) -> str:
    """A link to the run's artifacts where the tracking server has pages, else the URI."""
    import mlflow

    run_id, _, path = evidence.removeprefix("runs:/").partition("/")
    server = mlflow.get_tracking_uri()
    if not server.startswith(("http://", "https://")):
        return f"`{evidence}`"
    run = mlflow.MlflowClient().get_run(run_id)
    page = f"{server.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts/{path}"
    return f"[{path}]({page})"


def _escaped(text: str, limit: int = 200) -> str:
    """Text as one line that is nothing but text in Markdown: what a model's files are called is not trusted."""
    line = " ".join(text.split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)
