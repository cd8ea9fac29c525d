"""Webhooks: only what MLflow signed, lately and for the first time, becomes a hint."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities.webhook import Webhook, WebhookEvent
from mlflow.webhooks.delivery import _generate_hmac_signature
from mlflow.webhooks.delivery import test_webhook as deliver

from mlflow_deploy.errors import ConfigError, PortInUse
from mlflow_deploy.lifecycle.controller.listener import SECRET_VARIABLE, Listener, webhook_secret
from mlflow_deploy.lifecycle.controller.metrics import ControllerMetrics
from mlflow_deploy.lifecycle.controller.webhooks import WINDOW_SECONDS, Deliveries
from mlflow_deploy.lifecycle.hints import Hint, Hints
from mlflow_deploy.monitoring.webhook_signature import ID, SIGNATURE, TIMESTAMP, sign
from mlflow_deploy.ui.send import VARIABLE, send

SECRET = "0123456789abcdef"
NOW = 1_800_000_000.0
ALIAS = {
    "entity": "model_version_alias",
    "action": "created",
    "timestamp": "2027-01-15T08:00:00+00:00",
    "data": {"name": "churn", "alias": "champion", "version": "3"},
}


def delivery(
    event: Any = None, *, name: str = "one", at: float = NOW, secret: str = SECRET
) -> tuple[dict[str, str], bytes]:
    """Headers and body as MLflow's own code signs them."""
    text, stamp = json.dumps(ALIAS if event is None else event), str(int(at))
    signature = _generate_hmac_signature(secret, name, stamp, text)
    return {ID: name, TIMESTAMP: stamp, SIGNATURE: signature}, text.encode()


def test_what_mlflow_signs_is_a_hint_once() -> None:
    deliveries = Deliveries(SECRET)
    headers, body = delivery()
    verdict = deliveries.judge(headers, body, NOW)
    assert verdict.status == 200
    assert verdict.hint is not None
    assert (verdict.hint.model, verdict.hint.kind, verdict.hint.what, verdict.hint.after) == (
        "churn",
        "alias",
        "champion",
        "3",
    )
    again = deliveries.judge({name.lower(): value for name, value in headers.items()}, body, NOW + 7)
    assert (again.status, again.hint) == (200, None)
    assert deliveries.judge(*delivery(name="two"), NOW).hint is not None


@pytest.mark.parametrize("change", ["body", "secret", "id", "time", "signature", "none"])
def test_what_is_not_signed_so_is_refused(change: str) -> None:
    headers, body = delivery(secret="another secret!!" if change == "secret" else SECRET)
    wrong = {"id": {ID: "two"}, "time": {TIMESTAMP: str(int(NOW) + 1)}, "signature": {SIGNATURE: "v1,é"}}
    headers = {} if change == "none" else {**headers, **wrong.get(change, {})}
    verdict = Deliveries(SECRET).judge(headers, body + (b" " if change == "body" else b""), NOW)
    assert (verdict.status, verdict.hint) == (401, None)


@pytest.mark.parametrize("off", [-WINDOW_SECONDS - 1, WINDOW_SECONDS + 1])
def test_what_is_old_or_early_is_refused(off: float) -> None:
    verdict = Deliveries(SECRET).judge(*delivery(at=NOW + off), NOW)
    assert verdict.status == 401
    assert "300 s may be" in verdict.reason


def test_a_time_that_is_no_number_is_refused() -> None:
    for stamp in ("soon", "nan"):
        headers = {ID: "one", TIMESTAMP: stamp, SIGNATURE: sign(SECRET, "one", stamp, b"{}")}
        assert Deliveries(SECRET).judge(headers, b"{}", NOW).status == 401


@pytest.mark.parametrize(
    ("event", "status", "model"),
    [
        ({"entity": "model_version_tag", "action": "set", "data": {"name": "churn"}}, 200, "churn"),
        ({"entity": "prompt_alias", "action": "created", "data": {"name": "p", "alias": "a"}}, 200, None),
        ({"entity": "mlflow_deploy", "data": {"model": "churn", "kind": "stage", "by": "ada"}}, 200, "churn"),
        ({"entity": "mlflow_deploy", "data": {"model": 3}}, 400, None),
        ({"entity": "model_version_tag"}, 400, None),
        ([], 400, None),
    ],
)  # fmt: skip
def test_events_of_the_registry_are_hints(event: Any, status: int, model: str | None) -> None:
    verdict = Deliveries(SECRET).judge(*delivery(event), NOW)
    assert verdict.status == status
    assert (verdict.hint and verdict.hint.model) == model


@pytest.fixture
def port(home: Path) -> Iterator[int]:
    listener = Listener("127.0.0.1", 0, secret=SECRET, metrics=ControllerMetrics())
    with pytest.raises(PortInUse):
        Listener("127.0.0.1", listener.port, secret="", metrics=ControllerMetrics())
    yield listener.port
    listener.close()


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body or None, headers or {})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_the_port_takes_hints_and_tells_metrics(port: int) -> None:
    headers, body = delivery(at=time.time())
    assert ask(port, "POST", "/webhooks", body, headers) == (200, "taken\n")
    assert ask(port, "POST", "/webhooks", body, headers) == (200, "seen before\n")
    assert ask(port, "POST", "/webhooks", body)[0] == 401
    assert ask(port, "POST", "/webhooks", b"x" * 70_000, headers)[0] == 413
    assert ask(port, "POST", "/elsewhere", body, headers)[0] == 404
    assert [(each.model, each.source) for each in Hints().read()] == [("churn", "webhook")]
    status, text = ask(port, "GET", "/metrics")
    assert status == 200
    assert 'mlflow_deploy_controller_webhooks_total{status="200"} 2.0' in text
    assert "mlflow_deploy_controller_registry_up 0.0" in text


def test_mlflow_delivers_to_the_port(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own sender, with its events, headers and checks of the address."""
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    events = [WebhookEvent("model_version_alias", "created"), WebhookEvent("model_version_tag", "set")]
    hook = Webhook("1", "deploy", f"http://127.0.0.1:{port}/webhooks", events, 0, 0, secret=SECRET)
    for event in events:
        sent = deliver(hook, event)
        assert (sent.response_status, sent.response_body) == (200, "taken\n"), sent.error_message
    assert [each.kind for each in Hints().read()] == ["alias", "other"]
    refused = deliver(Webhook("2", "x", hook.url, events, 0, 0, secret="x" * 16), events[0])
    assert refused.response_status == 401


def test_the_app_of_another_machine_sends_whole_hints(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{port}/")
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    hint = Hint(model="churn", kind="stage", what="2", after="Production", archives=True, by="ada")
    send(hint)
    end = time.monotonic() + 10
    while not (found := Hints().read()):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert found == [hint]


def test_without_a_secret_no_webhook_is_taken(home: Path) -> None:
    listener = Listener("127.0.0.1", 0, secret="", metrics=ControllerMetrics())
    assert ask(listener.port, "POST", "/webhooks", *reversed(delivery()))[0] == 403
    listener.close()


def test_the_secret_is_in_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert webhook_secret() == ""
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    assert webhook_secret() == SECRET
    monkeypatch.setenv(f"{SECRET_VARIABLE}_FILE", str(tmp_path / "secret"))
    with pytest.raises(ConfigError, match="cannot be read"):
        webhook_secret()
    (tmp_path / "secret").write_text("short\n")
    with pytest.raises(ConfigError, match="too short"):
        webhook_secret()
