"""Rollouts on real processes under a steady load: good candidates arrive, bad ones go, no request is lost."""

from __future__ import annotations

import collections
import contextlib
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pytest
import requests
from mlflow.deployments import get_deploy_client
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression, Ridge

from mlflow_deploy.errors import RolloutFailed, StartFailed
from mlflow_deploy.lifecycle import release
from mlflow_deploy.monitoring.captured import CaptureStore
from mlflow_deploy.targets.local import LocalTarget
from mlflow_deploy.targets.supervisor import Supervisor
from tests.e2e.load import failed, grpc_load, load, quiet
from tests.waiting import eventually

CODE = """
import os
import time
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        {loading}

    def predict(self, context, model_input, params=None):
        {behaviour}
        return model_input["x"] * 2

mlflow.models.set_model(Model())
"""
# The input example is answered, so every version becomes ready; only real rows (x = 1) meet the fault.
BAD_BEHAVIOURS = {
    3: "if (model_input['x'] == 1).any(): raise ValueError('this candidate is broken')",
    4: "time.sleep(0.25 if (model_input['x'] == 1).any() else 0)",
    5: "model_input = model_input + (model_input == 1)",
    6: "pass  # does not load",
}
BROKEN_LOADING = "if 'LOGGING' not in os.environ: raise RuntimeError('the weights are missing')"
ROWS = pd.DataFrame({"x": [1.0]})
RATE = 200
SETTINGS = {
    "gateway": "envoy",
    "serving.grpc": "true",
    "replicas": "2",
    "step_seconds": "1.5",
    # Other programs share the cores of a test machine: an answer may well take three times as long as usual.
    "analysis.max_latency_ratio": "10",
}
CANARY = {"strategy": "canary", "canary_steps": "10,50"}


@pytest.fixture(scope="module")
def moody_models(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Registered model `moody` answers 2x: 1 and 2 are good; 3 raises, 4 is slow, 5 wrong, 6 cannot load."""
    folder = tmp_path_factory.mktemp("code")
    example = pd.DataFrame({"x": [5.0, 7.0]})
    signature = infer_signature(example, pd.Series([10.0, 14.0]))
    about: dict[str, Any] = {"name": "model", "signature": signature, "input_example": example}
    about |= {"registered_model_name": "moody", "pip_requirements": ["pandas"]}
    for model in (LinearRegression(), Ridge(alpha=1e-9)):
        with mlflow.start_run():
            mlflow.sklearn.log_model(model.fit(example, [10.0, 14.0]), **about)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGGING", "yes")
        for version, behaviour in BAD_BEHAVIOURS.items():
            path = folder / f"model{version}.py"
            loading = BROKEN_LOADING if version == 6 else "pass"
            path.write_text(CODE.format(behaviour=behaviour, loading=loading))
            with mlflow.start_run():
                mlflow.pyfunc.log_model(python_model=str(path), **about)
    return "moody"


@pytest.fixture(scope="module")
def url(moody_models: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Deployment d1: two replicas behind a gateway, which all tests here update."""
    folder = tmp_path_factory.mktemp("rollouts") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", str(folder))
        client = get_deploy_client("local")
        yield str(client.create_deployment("d1", "models:/moody/1", config=SETTINGS)["url"])
        Supervisor(folder / "local").shut_down()


def stable() -> dict[str, Any]:
    """The deployment as it is."""
    described: dict[str, Any] = get_deploy_client("local").get_deployment("d1")
    return described


def other_good_version() -> str:
    """The model version, of the two good ones, that is not served now."""
    return f"models:/moody/{'2' if stable()['model_version'] == '1' else '1'}"


class Shares:
    """Progress that tells how the answers were shared while each share was in force."""

    def __init__(self, seen: collections.Counter[str]) -> None:
        self._seen = seen
        self._begun: dict[int, collections.Counter[str]] = {}
        self._ended: dict[int, collections.Counter[str]] = {}

    def __call__(self, line: str) -> None:
        # A line without a colon comes before its change is made, while the last one holds.
        match = re.match(r"Revision \d+ gets (\d+) % [^:]*(:?)", line)
        if match and match[2]:
            self._begun.setdefault(int(match[1]), collections.Counter(self._seen))
        elif match and self._begun:
            self._ended[max(self._begun)] = collections.Counter(self._seen)

    def measured(self, candidate: int) -> dict[int, tuple[int, int]]:
        """Share in percent -> answers of the candidate, answers of both."""
        found = {}
        for share, ended in self._ended.items():
            new = ended - self._begun[share]
            found[share] = (new[f"r{candidate}"], new["200"])
        return found


def update(uri: str, config: dict[str, str], progress: Any = quiet) -> dict[str, Any]:
    return release.update(LocalTarget(), "d1", uri, config=config, progress=progress)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["rolling", "blue-green", "canary", "shadow", "recreate"])
def test_good_version_arrives_without_a_lost_request(url: str, strategy: str) -> None:
    with load(url, ROWS, rate=RATE, clients=8) as seen:
        time.sleep(0.5)
        shares = Shares(seen)
        # Only a rolling update needs several replicas to show anything; the last one leaves them for others.
        replicas = "2" if strategy in ("rolling", "recreate") else "1"
        described = update(
            other_good_version(), {**CANARY, "strategy": strategy, "replicas": replicas}, shares
        )
        candidate = described["revision"]
        eventually(lambda: seen[f"r{candidate}"] > 100, 10, "the new revision answers")
    print(f"\n{strategy}: {sum(seen[key] for key in seen if key[0] == 'r')} requests, failed: {failed(seen)}")
    assert failed(seen) == {}
    assert described["traffic"] == {str(candidate): 100}
    if strategy == "recreate":
        return
    rollout = described["rollout"]
    assert (rollout["strategy"], rollout["outcome"]) == (strategy, "promoted")
    expected = {"rolling": [50, 100], "blue-green": [100], "canary": [10, 50, 100], "shadow": [0, 100]}[
        strategy
    ]
    assert [event["share"] for event in rollout["events"]] == expected
    for share, (mine, both) in shares.measured(candidate).items():
        assert both > 100
        allowed = 5 * math.sqrt(share / 100 * (1 - share / 100) / both)
        print(f"  {share} %: {mine} of {both} = {mine / both:.1%}, allowed are {allowed:.1%} beside it")
        assert abs(mine / both - share / 100) <= allowed
    if strategy == "shadow":
        assert rollout["shadow"]["requests"] >= 100
        assert rollout["shadow"]["different"] == 0
        assert rollout["shadow"]["candidate_p95_ms"] is not None
        print(f"  {rollout['shadow']}")


@pytest.mark.slow
def test_rollback_under_load_loses_nothing(url: str) -> None:
    update(other_good_version(), {"strategy": "recreate", "replicas": "2"})
    before = stable()
    with load(url, ROWS, rate=RATE, clients=8) as seen:
        described = release.rollback(LocalTarget(), "d1", progress=quiet)
    print(f"\nrollback: {seen['200']} requests, failed: {failed(seen)}")
    assert failed(seen) == {}
    assert described["model_version"] != before["model_version"]
    assert described["traffic"] == {str(described["revision"]): 100}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "strategy", "error", "reason"),
    [
        (3, "canary", RolloutFailed, "too many errors"),
        (3, "rolling", RolloutFailed, "too many errors"),
        (4, "canary", RolloutFailed, "too slow"),
        (5, "shadow", RolloutFailed, "too many differences"),
        (6, "canary", StartFailed, "its process ended"),
    ],
)
def test_bad_version_is_taken_back(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    strategy: str,
    error: type[Exception],
    reason: str,
) -> None:
    # The model that does not load does so where it is converted, and not where it is served.
    monkeypatch.setenv("LOGGING", "yes")
    old = stable()["revision"]
    candidate = max(row["revision"] for row in stable()["revisions"]) + 1
    config = {"strategy": strategy, "canary_steps": "10,50", "step_seconds": "20"}
    # A slow machine would have a shadow that gets everything refuse some of it.
    config |= {"replicas": "2" if strategy == "rolling" else "1", "shadow_percent": "50"}
    with load(url, ROWS, rate=RATE, clients=16) as seen:
        time.sleep(0.5)
        with pytest.raises(error, match=reason):
            update(f"models:/moody/{version}", config)
        # What was in flight to the candidate is answered when the update has ended.
        after = collections.Counter(seen)
        eventually(lambda: seen["200"] > after["200"] + 100, 20, "the stable revision answers on")
        back = collections.Counter(seen) - after
    bad, all_ = seen[f"r{candidate}"], seen["200"] + sum(failed(seen).values())
    print(
        f"\nversion {version} by {strategy}: {all_} requests, {bad} to the candidate, failed: {failed(seen)}"
    )
    # Whatever failed was an answer of the candidate.
    assert set(failed(seen)) <= {"500", "429"}
    assert sum(failed(seen).values()) <= bad
    if strategy == "shadow" or error is StartFailed:
        assert bad == 0
    assert back[f"r{old}"] == back["200"] > 100
    described = stable()
    assert described["traffic"] == {str(old): 100}
    assert {row["status"] for row in described["revisions"] if row["revision"] == candidate} <= {"stopped"}
    if error is RolloutFailed:
        assert described["rollout"]["outcome"] == "rolled back"
        assert reason in described["rollout"]["events"][-1]["reason"]
    if strategy == "shadow":
        shown = run("rollout", "d1").stdout
        print(shown)
        assert re.search(r"[\d,]+ of [\d,]+ rows in [\d,]+ requests were answered differently", shown), shown
        assert re.search(r'\{"x": 1\.0\} +(2\.0|1\.9)\S* +4\.0', shown), shown
        assert "The rollout was rolled back." in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "strategy", "reason"), [(4, "canary", "too slow"), (5, "shadow", "too many differences")]
)
def test_bad_version_is_taken_back_when_all_ask_by_grpc(
    url: str, version: int, strategy: str, reason: str
) -> None:
    before = stable()
    config = {"strategy": strategy, "canary_steps": "50", "step_seconds": "20", "replicas": "1"}
    with (
        grpc_load(before["grpc"], "d1", clients=4) as called,
        pytest.raises(RolloutFailed, match=reason),
    ):
        update(f"models:/moody/{version}", config)
    print(f"\nversion {version} by {strategy}, asked by gRPC: {called}")
    # A slow answer is an answer; nothing failed, and a shadow answers nobody.
    good = f"version {before['model_version']}"
    assert set(called) == ({good} if strategy == "shadow" else {good, f"version {version}"})
    assert called[good] > 100
    after = stable()
    assert after["traffic"] == before["traffic"]
    assert after["rollout"]["outcome"] == "rolled back"
    assert reason in after["rollout"]["events"][-1]["reason"]
    if strategy == "shadow":
        worst = after["rollout"]["shadow"]["worst"][0]
        assert abs(float(worst["candidate"]) - 2 * float(worst["stable"])) < 0.01, worst


@contextlib.contextmanager
def labelled(url: str, data: Path, label: float) -> Iterator[None]:
    """Ask until the block ends, and give every answer the same label as soon as it has come."""
    store, stop = CaptureStore(data), threading.Event()
    body = {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}

    def ask() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                ids = [
                    session.post(f"{url}/invocations", json=body, timeout=10).headers["x-request-id"]
                    for _ in range(40)
                ]
                store.add_labels(pa.table({"key": ids, "label": [label] * len(ids)}), source="test")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_labels_take_a_wrong_version_back(url: str) -> None:
    before = stable()
    config = {"strategy": "canary", "canary_steps": "50", "step_seconds": "60", "replicas": "1"}
    # Without labels nothing would speak against it.
    config |= {"analysis.max_answer_shift": "0", "analysis.quality_tolerance": "0.01"}
    data = LocalTarget().home / "local" / "deployments" / "d1" / "data"
    with labelled(url, data, 2.0), pytest.raises(RolloutFailed, match="too often wrong") as caught:
        update("models:/moody/5", config)
    print(f"\n{caught.value.text}")
    after = stable()
    assert after["traffic"] == before["traffic"]
    assert "labelled answers wrong, stable 0 of" in after["rollout"]["events"][-1]["reason"]


@pytest.mark.slow
def test_killed_canary_is_taken_back_by_the_next_command(url: str) -> None:
    target, old = LocalTarget(), stable()["revision"]
    config = {**CANARY, "step_seconds": "60", "replicas": "1"}
    code = (
        "from mlflow.deployments import get_deploy_client as g\n"
        f"g('local').update_deployment('d1', {other_good_version()!r}, config={config!r})"
    )
    # The command has to import everything first, for which this load leaves it the time.
    with load(url, ROWS, rate=RATE / 4) as seen:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: 10 in target.require("d1").weights.values(), 120, "the canary has 10 %")
        finally:
            process.kill()
            process.wait()
        time.sleep(0.5)
        described = release.reconcile(target, quiet)[0]
    assert failed(seen) == {}
    assert described["traffic"] == {str(old): 100}
    assert "killed" in described["rollout"]["events"][-1]["reason"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mlflow-deploy` as a user would."""
    tool = str(Path(sys.executable).parent / "mlflow-deploy")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_another_terminal_pauses_and_promotes(url: str) -> None:
    target = LocalTarget()
    outcome: list[Any] = []
    uri, config = other_good_version(), {**CANARY, "step_seconds": "30", "replicas": "1"}
    updating = threading.Thread(target=lambda: outcome.append(update(uri, config)))
    updating.start()
    try:
        eventually(lambda: 10 in target.require("d1").weights.values(), 60, "the canary has 10 %")
        assert run("rollout", "d1", "pause").returncode == 0
        for share in (50, 100):
            release.steer(target, "d1", "promote")
            eventually(lambda share=share: share in target.require("d1").weights.values(), 20, f"{share} %")
        # The word is taken back when it is obeyed, so this one is about the last step.
        eventually(lambda: target.control("d1") == "", 10, "the promotion is obeyed")
        release.steer(target, "d1", "promote")
    finally:
        updating.join(180)
    assert outcome[0]["rollout"]["outcome"] == "promoted"
    assert "The rollout was promoted." in run("rollout", "d1").stdout
    none = run("rollout", "d1", "abort")
    assert none.returncode == 1
    assert none.stderr.startswith("Error: No rollout of deployment 'd1' goes on")
