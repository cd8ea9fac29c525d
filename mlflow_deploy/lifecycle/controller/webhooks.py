"""Webhooks of the registry: what is signed, recent and new becomes a hint."""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mlflow_deploy.lifecycle.hints import Hint
from mlflow_deploy.monitoring.webhook_signature import ID, SIGNATURE, TIMESTAMP, sign

ENTITY = "mlflow_deploy"
"""Entity of deliveries that the app in the MLflow server sends; they carry a whole hint."""

WINDOW_SECONDS = 300.0
"""How far the time of a delivery may be from ours. MLflow's retries carry the time of the first attempt."""

_MOST_IDS = 10_000


@dataclass(frozen=True)
class Verdict:
    """What becomes of a delivery.

    Attributes:
        status: HTTP status for the sender.
        reason: the same in words.
        hint: for the controller; None when there is nothing to do.
    """

    status: int
    reason: str
    hint: Hint | None = None


class Deliveries:
    """Judges deliveries, and knows those of the last minutes.

    Args:
        secret: shared with the MLflow server's webhooks.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}

    def judge(self, headers: Mapping[str, str], body: bytes, now: float) -> Verdict:
        """What becomes of a delivery.

        Args:
            headers: of the request; the case of their names does not matter.
            now: seconds since the epoch.
        """
        sent = {name.lower(): value for name, value in headers.items()}
        delivery, timestamp, given = (sent.get(name.lower(), "") for name in (ID, TIMESTAMP, SIGNATURE))
        expected = sign(self._secret, delivery, timestamp, body)
        if not delivery or not hmac.compare_digest(expected.encode(), given.encode()):
            return Verdict(401, "the signature is not that of the secret")
        try:
            age = abs(now - float(timestamp))
        except ValueError:
            return Verdict(401, "the time is no number")
        if not age <= WINDOW_SECONDS:
            return Verdict(401, f"the time is {age:.0f} s off; {WINDOW_SECONDS:.0f} s may be")
        try:
            hint = _hint(json.loads(body))
        except (ValueError, msgspec.ValidationError) as error:
            return Verdict(400, f"the body is no event: {error}")
        if not self._is_new(delivery, now):
            return Verdict(200, "seen before")
        return Verdict(200, "taken" if hint else "nothing to do", hint)

    def forget(self, delivery: str) -> None:
        """Take this delivery again: it could not be kept."""
        with self._lock:
            self._seen.pop(delivery, None)

    def _is_new(self, delivery: str, now: float) -> bool:
        with self._lock:
            if delivery in self._seen:
                return False
            # A delivery that is older than twice the window is refused by its time.
            recent = {each: at for each, at in self._seen.items() if now - at <= 2 * WINDOW_SECONDS}
            self._seen = dict(list(recent.items())[-_MOST_IDS + 1 :]) | {delivery: now}
            return True


def _hint(event: Any) -> Hint | None:
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
        raise ValueError("it has no data")
    data = event["data"]
    if event.get("entity") == ENTITY:
        return msgspec.convert(data, Hint)
    name = data.get("name")
    if not isinstance(name, str) or not str(event.get("entity", "")).startswith(
        ("model_version", "registered")
    ):
        return None
    if event["entity"] != "model_version_alias" or not isinstance(data.get("alias"), str):
        return Hint(model=name, source="webhook")
    after = str(data.get("version") or "") if event.get("action") == "created" else ""
    return Hint(model=name, kind="alias", what=data["alias"], after=after, source="webhook")
