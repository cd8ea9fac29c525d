"""A user deploys on Docker: create, predict, update, roll back, lose a replica, delete; nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.deployments import get_deploy_client

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle import release
from mlflow_deploy.targets import docker_names as keys
from mlflow_deploy.targets.docker import NAMESPACE_VARIABLE, DockerTarget
from tests.e2e.conftest import answers
from tests.e2e.load import failed, forced, grpc_load, load, quiet
from tests.engine import BASE, things
from tests.waiting import eventually

SPACE = f"story-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def client(
    engine: Any,
    iris_models: str,
    with_locks: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """MLflow's client of target docker, with a state folder and a namespace of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEPLOY_HOME", with_locks(tmp_path_factory.mktemp("home")))
        patch.setenv("MLFLOW_DEPLOY_IMAGE_BASE_IMAGE", BASE)
        patch.setenv(NAMESPACE_VARIABLE, SPACE)
        yield get_deploy_client("docker")


@pytest.fixture(autouse=True)
def nothing_left(client: Any) -> Iterator[None]:
    """A test that fails leaves nothing for the next one."""
    yield
    for name in DockerTarget().names():
        DockerTarget().remove(name)


def replicas(engine: Any) -> list[dict[str, Any]]:
    """The inspected containers of all revisions."""
    wanted = {"label": [f"{keys.NAMESPACE}={SPACE}", f"{keys.ROLE}=revision"]}
    return [engine.api.inspect_container(each["Id"]) for each in engine.api.containers(filters=wanted)]


@pytest.mark.slow
def test_life_of_a_deployment_behind_a_gateway(client: Any, engine: Any, iris_rows: Any) -> None:
    config = {"replicas": "2", "keep_revisions": "1", "docker.memory": "512m"}
    begun = time.monotonic()
    made = client.create_deployment("flights", "models:/iris/1", config=config)
    print(f"created in {time.monotonic() - begun:.1f} s, images and all")
    assert made["status"] == "ready"
    assert client.predict("flights", iris_rows.head(3)).get_predictions().shape == (3, 1)
    assert [each["name"] for each in client.list_deployments()] == ["flights"]
    assert made["gateway"] == "envoy"
    with load(made["url"], iris_rows, rate=200) as seen:
        eventually(lambda: seen["200"] > 50, 20, "answers under load")
        begun = time.monotonic()
        canary = {"strategy": "canary", "canary_steps": "50", "step_seconds": "1", "step_requests": "50"}
        after = client.update_deployment("flights", "models:/iris/2", config=canary)
        assert after["traffic"] == {"2": 100}
        assert after["rollout"]["outcome"] == "promoted"
        print(f"updated in {time.monotonic() - begun:.1f} s")
        before = seen["r2"]
        eventually(lambda: seen["r2"] > before + 50, 20, "answers of revision 2")
        kept = {each["Id"] for each in replicas(engine) if each["Config"]["Labels"][keys.REVISION] == "1"}
        assert len(kept) == 2
        assert forced(made["url"], iris_rows, 1) == (200, "1")
        begun = time.monotonic()
        assert release.rollback(DockerTarget(), "flights", progress=quiet)["model_version"] == "1"
        print(f"rolled back in {time.monotonic() - begun:.1f} s")
        assert kept < {each["Id"] for each in replicas(engine)}
        assert forced(made["url"], iris_rows, 2) == (200, "2")
        victim = next(each for each in replicas(engine) if each["Id"] in kept)
        os.kill(victim["State"]["Pid"], 9)
        before = seen["200"]
        eventually(lambda: seen["200"] > before + 300, 20, "300 answers after a replica died")
        eventually(
            lambda: client.get_deployment("flights")["detail"] == "", 20, "both replicas are ready again"
        )
    print(f"{seen['200']} answers, others: {failed(seen)}")
    assert failed(seen) == {}
    assert seen["r1"] > 50
    again = next(each for each in replicas(engine) if each["Id"] == victim["Id"])
    assert again["RestartCount"] == 1
    stats = DockerTarget().stats(DockerTarget().require("flights"))
    assert stats[1].server_errors == 0
    client.delete_deployment("flights")
    assert things(engine, SPACE) == []


@pytest.mark.slow
def test_rolling_and_shadow_lose_nothing_by_http_and_by_grpc(
    client: Any, engine: Any, iris_rows: Any
) -> None:
    config = {"replicas": "2", "serving.grpc": "true", "step_seconds": "1", "step_requests": "50"}
    # Other programs share the cores of a test machine; the shadow below shows that answers are recorded.
    config |= {"analysis.max_latency_ratio": "10", "analysis.max_answer_shift": "0"}
    config |= {"analysis.max_disagreement": "0.05", "monitor": "none"}
    made = client.create_deployment("flights", "models:/iris/1", config=config)
    with load(made["url"], iris_rows, rate=50) as seen:
        rolled = client.update_deployment("flights", "models:/iris/2", config={"strategy": "rolling"})
        before = seen["r2"]
        eventually(lambda: seen["r2"] > before + 20, 20, "answers of revision 2")
    print(f"rolling: {dict(seen)}")
    assert failed(seen) == {}
    assert [event["share"] for event in rolled["rollout"]["events"]] == [50, 100]
    # The same model again, so that every answer has to be the same.
    with load(made["url"], iris_rows, rate=50) as seen, grpc_load(made["grpc"], "flights") as called:
        shadow = {"strategy": "shadow", "replicas": "1"}
        shadowed = client.update_deployment("flights", "models:/iris/2", config=shadow)
    report = shadowed["rollout"]["shadow"]
    print(f"shadow: {dict(seen)}, by gRPC {called}, {report}")
    assert failed(seen) == {}
    assert set(called) == {"version 2"}
    assert [event["share"] for event in shadowed["rollout"]["events"]] == [0, 100]
    assert report["requests"] >= 50
    assert report["different"] == 0
    client.delete_deployment("flights")
    assert things(engine, SPACE) == []


@pytest.mark.slow
def test_killed_update_is_undone_by_the_next_command(client: Any, engine: Any, iris_rows: Any) -> None:
    made = client.create_deployment("flights", "models:/iris/1", config={"monitor": "none"})
    code = (
        "from mlflow.deployments import get_deploy_client\n"
        "config = {'strategy': 'canary', 'canary_steps': '50', 'step_seconds': '600'}\n"
        "get_deploy_client('docker').update_deployment('flights', 'models:/iris/2', config=config)"
    )
    with load(made["url"], iris_rows, rate=100) as seen:
        update = subprocess.Popen([sys.executable, "-c", code])
        target = DockerTarget()
        try:
            eventually(lambda: target.require("flights").weights == {1: 50, 2: 50}, 60, "the step is reached")
            eventually(lambda: seen["r2"] > 20, 20, "answers of the candidate")
        finally:
            update.kill()
            update.wait()
        done = release.set_traffic(target, "flights", {1: 100}, progress=quiet)
    print(f"{seen['200']} answers, shares {dict(seen)}")
    assert failed(seen) == {}
    assert done["traffic"] == {"1": 100}
    assert done["rollout"]["outcome"] == "rolled back"
    assert {each["Config"]["Labels"][keys.REVISION] for each in replicas(engine)} == {"1"}
    client.delete_deployment("flights")
    assert things(engine, SPACE) == []


@pytest.mark.slow
def test_command_line_without_gateway_hands_the_port_over(client: Any, engine: Any, iris_rows: Any) -> None:
    tool = str(Path(sys.executable).parent / "mlflow")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [tool, "deployments", *arguments, "-t", "docker", "--name", "flights"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    settings = ["-C", "gateway=none", "-C", "docker.cpus=1", "-C", "docker.env.COLOUR=red"]
    settings += ["-C", "monitor=none"]
    done = run("create", "-m", "models:/iris/1", *settings)
    assert done.returncode == 0, done.stderr
    url = client.get_deployment("flights")["url"]
    assert answers(url, iris_rows.head(2))
    with pytest.raises(ConfigError, match="gateway=envoy"):
        client.update_deployment("flights", config={"replicas": "2"})
    assert client.get_deployment("flights")["traffic"] == {"1": 100}
    done = run("update", "-m", "models:/iris/2")
    assert done.returncode == 0, done.stderr
    assert client.get_deployment("flights")["url"] == url
    assert answers(url, iris_rows.head(2))
    client.delete_deployment("flights")
    assert things(engine, SPACE) == []
