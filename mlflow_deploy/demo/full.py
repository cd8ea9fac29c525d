"""What follows the alert in the full demo: a new training, gates, a canary under traffic, the promotion."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlflow_deploy.demo import traffic
from mlflow_deploy.errors import DeployError, PromotionRefused
from mlflow_deploy.lifecycle.policy import ModelPolicy, StagePolicy
from mlflow_deploy.progress import mlflow_is_quiet

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.lifecycle.promotion import Promotion
    from mlflow_deploy.targets.base import Target

MONTHS = (4, 5, 6, 7)
"""What the new version is trained on, but the last two weeks."""
_TRAFFIC_MONTH = 8
_CHUNK_ROWS, _PAUSE_SECONDS = 50, 0.1


@dataclass(frozen=True)
class FullResult:
    """How the new version got to serve.

    Attributes:
        version: registered version of the new training.
        metrics: of it, on the last two weeks of July.
        gates: name, outcome and summary of each gate.
        steps: share of the traffic in percent, decision and reason of each step of the canary.
        revision: the revision that serves now.
        answered: requests that were answered during the canary.
        failed: why others were not; the rest of a connection is not sent after one.
    """

    version: str
    metrics: dict[str, float]
    gates: tuple[tuple[str, str, str], ...]
    steps: tuple[tuple[int, str, str], ...]
    revision: int
    answered: int
    failed: tuple[str, ...]


def run(
    project: dict[str, ModuleType],
    target: Target,
    deployment: str,
    model: str,
    step: Callable[[str], Any],
    progress: Callable[[str], None],
) -> FullResult:
    """Train on the months up to the alert, and promote the new version when its gates allow it.

    Raises:
        PromotionRefused: a gate or the canary was against it; the version before serves on.
    """
    from mlflow_deploy.lifecycle.promote import promote

    with step("Train again on the flights of April to July and register the model"), mlflow_is_quiet():
        trained = project["train"].train(MONTHS, registered_model_name=model)
    data = project["data"]
    # In any order, so that the canary sees the whole month and not its first hours.
    flights = data.load_flights([_TRAFFIC_MONTH])[list(data.FEATURES)].sample(frac=1.0, random_state=0)
    title = f"Promote version {trained.model_version}: gates, then a canary among the flights of August"
    with step(title), _traffic(target.url(target.require(deployment)), flights) as sent:
        promotion = promote(
            model,
            str(trained.model_version),
            "Production",
            policy=_policy(model, deployment),
            progress=progress,
        )
    _promoted(promotion)
    record = target.require(deployment)
    events = record.last_rollout.events if record.last_rollout is not None else ()
    return FullResult(
        version=str(trained.model_version),
        metrics=trained.metrics,
        gates=tuple(
            (gate.name, gate.outcome, gate.summary)
            for gate in (promotion.gates.results if promotion.gates is not None else ())
        ),
        steps=tuple((event.share, event.decision, event.reason) for event in events),
        revision=record.stable.number,
        answered=sent.answered,
        failed=tuple(sent.failed),
    )


def _policy(model: str, deployment: str) -> ModelPolicy:
    """The stage with what it asks: not worse than the version that serves, on rows that neither has seen."""
    production = StagePolicy(
        name="Production",
        classic_stage="Production",
        alias="champion",
        deployment=deployment,
        strategy="canary",
        config={
            "canary_steps": "20,50",
            "step_seconds": 5,
            "step_requests": 500,
            # On one small machine the demo's own work decides how long an answer takes.
            "analysis.max_latency_ratio": 0,
            # Its own validation rows, not those of February.
            "monitor.reference": "",
        },
        gates={
            "security": {},
            "signature": {},
            "smoke": {},
            "parity": {},
            "champion": {"metric": "accuracy", "max_loss": 0.0},
        },
    )
    return ModelPolicy(name=model, stages=(production,))


def _promoted(promotion: Promotion) -> None:
    if promotion.outcome != "promoted":
        raise PromotionRefused(promotion.plan.model_uri, promotion.plan.stage, promotion.reason)


@dataclass
class _Sent:
    answered: int = 0
    failed: list[str] = field(default_factory=list)


@contextmanager
def _traffic(url: str, flights: pd.DataFrame) -> Iterator[_Sent]:
    """Send one flight after the other, 50 on each connection, until the end of the block."""
    sent, stop = _Sent(), threading.Event()

    def send() -> None:
        start = 0
        while not stop.wait(_PAUSE_SECONDS):
            rows = flights.iloc[start : start + _CHUNK_ROWS]
            start = (start + _CHUNK_ROWS) % len(flights)
            try:
                sent.answered += len(traffic.send(url, rows, lambda _: None).latencies)
            except DeployError as error:
                sent.failed.append(error.text)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()
