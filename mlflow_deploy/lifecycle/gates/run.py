"""Run the gates of a stage on a version, cheap ones first, and none that loads a model that is not safe."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mlflow_deploy.errors import DeployError
from mlflow_deploy.lifecycle.gates.base import GATES, Gate, Verdict, failed, load_gate, skipped
from mlflow_deploy.lifecycle.gates.context import GateContext
from mlflow_deploy.lifecycle.gates.report import GateReport, GateResult
from mlflow_deploy.lifecycle.policy import Policy, StagePolicy
from mlflow_deploy.lifecycle.policy_source import policy_of
from mlflow_deploy.lifecycle.prepared import keep, key_of, recall
from mlflow_deploy.lifecycle.registry import resolve
from mlflow_deploy.lifecycle.steps import Progress, now
from mlflow_deploy.progress import mlflow_is_quiet
from mlflow_deploy.rollout.journal import who
from mlflow_deploy.targets import open_target

SECURITY = "security"
"""The gate without which no model is loaded that it was asked about."""


def gates_of(stage: StagePolicy) -> list[Gate]:
    """The gates of a stage in the order in which they run: built-in ones first, then the policy's own.

    Raises:
        ConfigError: a gate or one of its settings is unknown.
    """
    order = {name: index for index, name in enumerate(GATES)}
    names = sorted(stage.gates, key=lambda name: order.get(name, len(order)))
    return [load_gate(name, stage.gates[name]) for name in names]


def run_gates(context: GateContext, gates: Sequence[Gate] | None = None) -> GateReport:
    """Run the gates of the context's stage, all of them: who reads the report wants to know everything.

    Args:
        gates: other gates; None for those of the policy.

    Raises:
        ConfigError: the policy names a gate or a setting that does not exist.
    """
    results: list[GateResult] = []
    unsafe = False
    for gate in gates_of(context.stage) if gates is None else gates:
        context.progress(f"Gate {gate.name}")
        begun, found_at = time.monotonic(), ""
        if unsafe and gate.loads_model:
            verdict = skipped("it would load the model, which gate security has refused")
        else:
            verdict, found_at = _checked(gate, context)
        refused = verdict.outcome != "passed" and not gate.settings.optional
        unsafe = unsafe or (gate.name == SECURITY and refused)
        results.append(
            GateResult(
                name=gate.name,
                outcome=verdict.outcome,
                optional=gate.settings.optional,
                summary=" ".join(verdict.summary.split()),
                evidence=dict(verdict.evidence),
                seconds=time.monotonic() - begun,
                found_at=found_at,
            )
        )
    return GateReport(
        model_uri=context.model.uri,
        model=context.model.name,
        version=context.model.version,
        stage=context.stage.name,
        at=now(),
        bundle=context.bundle_digest,
        results=tuple(results),
    )


def _checked(gate: Gate, context: GateContext) -> tuple[Verdict, str]:
    """What the gate finds, and when it was found, if that was before."""
    try:
        with mlflow_is_quiet():
            key = _key(gate, context) if context.reuse else ""
            if key and (kept := recall(key)):
                return Verdict("passed", kept["summary"], kept["evidence"]), kept["at"]
            verdict = gate.check(context)
            if verdict.outcome == "passed" and (key := key or _key(gate, context)):
                keep(key, {"summary": verdict.summary, "evidence": dict(verdict.evidence), "at": now()})
            return verdict, ""
    except DeployError as error:
        return failed(error.text, error=error.code), ""
    except Exception as error:  # noqa: BLE001 - own gates raise anything; a check that breaks is not passed
        text = " ".join(str(error).split())
        return failed(f"the gate itself broke: {type(error).__name__}: {text}"[:500]), ""


def _key(gate: Gate, context: GateContext) -> str:
    """The key of a gate's verdict; empty where the check must be made each time."""
    rests_on = gate.rests_on(context)
    if rests_on is None:
        return ""
    source, code = inspect.getsourcefile(type(gate)), ""
    if source is not None:
        code = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return key_of(
        f"gate {gate.name}",
        {
            "class": f"{type(gate).__module__}:{type(gate).__qualname__}",
            "code": code,
            "settings": gate.settings.model_dump(mode="json"),
            "model": msgspec.to_builtins(context.source),
            "on": dict(rests_on),
        },
    )


def check_version(
    model_uri: str, stage: str, *, policy: Path | str | None = None, progress: Progress
) -> GateReport:
    """Run the gates of a stage on any model, without promoting it; for pipelines.

    Args:
        model_uri: a registered version, or a model of no name, which the policy's defaults hold for.
        policy: the policy file; None to find it.

    Raises:
        ConfigError: the policy cannot be used, or has no such stage.
        ModelNotFound: there is no such model.
        RegistryUnreachable: the registry does not answer.
    """
    model = resolve(model_uri)
    own = policy_of(model.name, policy) if model.name else Policy.load(policy).for_model("")
    wanted = own.stage(stage)
    name = own.deployment_of(wanted) if model.name else ""
    record = open_target(wanted.target).read_record(name) if name else None
    ready = record if record is not None and record.phase == "ready" else None
    with GateContext(model, own, wanted, record=ready, requester=who(), progress=progress) as context:
        return run_gates(context)
