"""`mlflow server --app-name mlflow-deploy`: moves reach the controller by the app, and by webhooks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import pytest
import requests
from cryptography.fernet import Fernet

from mlflow_deploy.config import state_home
from mlflow_deploy.lifecycle.controller.listener import Listener
from mlflow_deploy.lifecycle.controller.loop import follow
from mlflow_deploy.lifecycle.controller.metrics import ControllerMetrics
from mlflow_deploy.lifecycle.controller.reconcile import Event
from mlflow_deploy.lifecycle.hints import Hints
from mlflow_deploy.lifecycle.prepared import FOLDER
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.supervisor import Supervisor
from tests.e2e.load import failed, load
from tests.e2e.mlflow_server import serving
from tests.waiting import eventually

pytestmark = pytest.mark.slow

MODEL = "told"
ROW = {"dataframe_split": {"columns": ["x"], "data": [[10.0]]}}
SECRET = "a secret of the webhooks"
POLICY = """
models:
  told:
    stages:
      - name: Production
        deployment: "{model}"
        strategy: canary
        config: {gateway: envoy, format: onnx, canary_steps: "50", step_seconds: 0.3, monitor: none,
          analysis.max_answer_shift: "0", analysis.max_latency_ratio: "10"}
        gates: [security, signature, smoke, parity]
"""


@pytest.fixture(scope="module")
def server(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server with two versions; its URI."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "lifecycle.yaml").write_text(POLICY)
    open_webhooks = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        # The server keeps for a minute that nobody wants to hear of aliases.
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_DEPLOY_POLICY", str(folder / "lifecycle.yaml"))
        with serving("mlflow-deploy", folder, tracking, MODEL, (1, 2), open_webhooks) as uri:
            yield uri
            Supervisor(folder / "home" / "local").shut_down()


@pytest.mark.alone
def test_a_version_that_was_prepared_starts_at_once(server: str) -> None:
    """The controller looks by itself every five minutes: what happens soon comes from the app."""
    client, target = mlflow.MlflowClient(), open_target("local")
    events, stop = list[Event](), threading.Event()
    thread = threading.Thread(
        target=lambda: follow(
            policy=None, models=(), every=False, interval=300, once=False, stop=stop, tell=events.append,
            progress=lambda line: None,
        )
    )  # fmt: skip
    client.set_registered_model_alias(MODEL, "champion", "1")
    thread.start()
    try:
        eventually(lambda: len(events) == 1, 60, "version 1 is deployed")
        # A bundle and four verdicts of each version.
        prepared = state_home() / FOLDER
        eventually(lambda: len(list(prepared.glob("[!.]*"))) == 10, 60, "version 2 is prepared")
        took = []
        with load(target.url(target.require(MODEL)), ROW, rate=30, clients=2) as seen:
            # Other work on the machine slows it down and never speeds it up.
            for wanted in ("2", "1", "2", "1", "2"):
                took.append(_promoted(client, target, wanted, seen))
                eventually(lambda: len(events) == 1 + len(took), 60, "it is deployed")
                if took[-1][0] < 1:
                    break
    finally:
        stop.set()
        thread.join()
    print("the canary starts, and answers, after these seconds:", took)
    assert [(each.action, each.version) for each in events[:2]] == [("promoted", "1"), ("promoted", "2")]
    assert not failed(seen)
    assert min(started for started, _ in took) < 1
    assert min(answered for _, answered in took) < 10
    version = client.get_model_version(MODEL, "2")
    report = mlflow.artifacts.load_dict(version.tags["deploy.evidence.Production"])
    assert all(each["found_at"] for each in report["results"]), "the record says that it was found before"
    assert "passed (found " in version.description


def _promoted(client: Any, target: Any, version: str, seen: Mapping[str, int]) -> tuple[float, float]:
    """Seconds from the alias to the start of the canary, and to its first answer under load."""
    number = target.require(MODEL).revisions[-1].number + 1
    clicked = time.monotonic()
    client.set_registered_model_alias(MODEL, "champion", version)
    started = _until(lambda: target.require(MODEL).revisions[-1].number == number, clicked)
    return started, _until(lambda: f"r{number}" in seen, clicked)


def test_a_webhook_of_the_server_is_taken(server: str) -> None:
    client, metrics, hints = mlflow.MlflowClient(), ControllerMetrics(), Hints()
    hints.read()
    hints.done()
    listener = Listener("127.0.0.1", 0, secret=SECRET, metrics=metrics)
    foreign = Listener("127.0.0.1", 0, secret=SECRET[::-1], metrics=ControllerMetrics())
    try:
        for name, each in (("ours", listener), ("theirs", foreign)):
            client.create_webhook(
                name, f"http://127.0.0.1:{each.port}/webhooks", ["model_version_alias.created"], secret=SECRET
            )
        client.set_registered_model_alias(MODEL, "watched", "1")
        taken = {"webhook", "app"}
        eventually(lambda: {each.source for each in hints.read()} == taken, 20, "both have told of it")
        (hint,) = [each for each in hints.read() if each.source == "webhook"]
        assert (hint.model, hint.kind, hint.what, hint.after) == (MODEL, "alias", "watched", "1")
        eventually(lambda: b'webhooks_total{status="401"} 1.0' in _metrics(foreign.port), 20, "it is refused")
        assert b'webhooks_total{status="200"} 1.0' in _metrics(listener.port)
        assert len(hints.read()) == 2, "who has another secret leaves no hint"
    finally:
        listener.close()
        foreign.close()


def _until(condition: Any, since: float) -> float:
    eventually(condition, 30, "the canary is there")
    return time.monotonic() - since


def _metrics(port: int) -> bytes:
    return requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60).content
