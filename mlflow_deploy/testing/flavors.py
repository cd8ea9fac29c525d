"""FlavorContract: what every MLflow flavor of this package must do, whatever form it saves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlflow_deploy.errors import ConversionError, DeployError
from mlflow_deploy.testing.comparing import same_answer

_SERVE_SECONDS = 120.0


@dataclass(frozen=True)
class FlavorCase:
    """A model to be saved with a flavor.

    Attributes:
        flavor: the flavor's module.
        model: what its `save_model` takes.
        example: rows, as a DataFrame, an array or a dict of arrays.
        expected: what the native model answers for them.
        options: more arguments of `save_model`.
        environment: variables that a process needs to load the model.
        atol: how far numbers may differ.
    """

    flavor: ModuleType
    model: Any
    example: Any
    expected: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    atol: float = 1e-5


class FlavorContract:
    """Subclass it with a class-scoped fixture `case` and, as in `tests/conftest.py`, a fixture `tracking`."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> FlavorCase:
        """The model of the flavor that is tested."""
        raise NotImplementedError("a contract's subclass gives this fixture")

    @pytest.fixture(scope="class")
    @classmethod
    def saved(cls, case: FlavorCase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """The model, saved once for all tests; its environment holds meanwhile."""
        path = tmp_path_factory.mktemp("flavor") / "model"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in case.environment.items():
                patch.setenv(name, value)
            case.flavor.save_model(case.model, path, input_example=case.example, **case.options)
            yield path

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def served(
        cls,
        request: pytest.FixtureRequest,
        case: FlavorCase,
        saved: Path,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Served | None]:
        """`mlflow models serve` on the model, if a test wants it; it starts while other tests run."""
        wanted = [item.name for item in request.session.items if item.parent is request.node]
        if "test_models_serve" not in wanted:
            yield None
            return
        port, log = _free_port(), tmp_path_factory.mktemp("serve") / "serve.log"
        command = [
            sys.executable, "-m", "mlflow", "models", "serve", "-m", str(saved), "-p", str(port),
            "--env-manager", "local", "--workers", "1",
        ]  # fmt: skip
        environment = {**os.environ, **case.environment, "PATH": _path()}
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        try:
            yield Served(f"http://127.0.0.1:{port}", process, log)
        finally:
            _stop(process)

    def test_folder_names_flavor_signature_example_and_requirements(
        self, case: FlavorCase, saved: Path
    ) -> None:
        from mlflow.models import get_model_info

        info = get_model_info(str(saved))
        assert info.flavors["python_function"]["loader_module"] == case.flavor.__name__
        section = info.flavors[case.flavor.FLAVOR_NAME]
        assert section["digest"].startswith("sha256-")
        assert info.signature is not None
        assert info.signature.inputs
        assert info.signature.outputs
        assert info.saved_input_example_info
        lines = (saved / "requirements.txt").read_text(encoding="utf-8").splitlines()
        packages = {line.partition("==")[0] for line in lines}
        wanted = {line.partition("==")[0] for line in case.flavor.get_default_pip_requirements()}
        assert {"mlflow", "mlflow-deploy"} <= packages
        assert len(wanted) > 1
        assert (saved / "conda.yaml").is_file()
        assert case.flavor.get_default_conda_env()["dependencies"]

    def test_pyfunc_answers_like_the_model(self, case: FlavorCase, saved: Path) -> None:
        import mlflow

        same_answer(mlflow.pyfunc.load_model(str(saved)).predict(case.example), case.expected, case.atol)

    def test_load_model_gives_what_the_runtime_loads(self, case: FlavorCase, saved: Path) -> None:
        assert case.flavor.load_model(saved) is not None

    def test_deployment_takes_the_form_as_it_is(self, case: FlavorCase, saved: Path, tmp_path: Path) -> None:
        from mlflow_deploy.conversion import make_servable

        done = make_servable(saved, tmp_path)
        form = (
            "" if case.flavor.FLAVOR_NAME.endswith(".sealed") else case.flavor.FLAVOR_NAME.partition(".")[2]
        )
        assert done.servable.kind == form or (not form and done.servable.sealed)
        assert done.content.is_relative_to(saved)
        assert not any(tmp_path.iterdir())
        assert done.example is not None
        answered = done.example["predictions"]
        same_answer(answered, case.expected, max(case.atol, 1e-3))

    def test_changed_file_is_refused(self, case: FlavorCase, saved: Path, tmp_path: Path) -> None:
        import shutil

        import mlflow

        copy = tmp_path / "changed"
        shutil.copytree(saved, copy)
        victim = max((path for path in copy.rglob("servable/**/*") if path.is_file()), key=_size)
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
        with pytest.raises(DeployError, match="changed"):
            mlflow.pyfunc.load_model(str(copy))

    def test_what_is_no_model_is_refused(self, case: FlavorCase, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="cannot be saved as"):
            case.flavor.save_model(object(), tmp_path / "no", input_example=case.example, **case.options)

    def test_log_and_register(self, case: FlavorCase, saved: Path, tracking: str) -> None:
        import mlflow

        name = case.flavor.FLAVOR_NAME.replace(".", "-")
        # The folder has its form already, so that nothing is converted again; sealing has to be done again.
        model = case.model if name.endswith("sealed") else saved
        with mlflow.start_run():
            info = case.flavor.log_model(
                model,
                name="model",
                registered_model_name=name,
                input_example=case.example,
                **case.options,
            )
        assert case.flavor.FLAVOR_NAME in info.flavors
        assert mlflow.MlflowClient().get_logged_model(info.model_id).status == "READY"
        version = info.registered_model_version
        answer = mlflow.pyfunc.load_model(f"models:/{name}/{version}").predict(case.example)
        same_answer(answer, case.expected, case.atol)

    def test_models_predict(self, case: FlavorCase, saved: Path, tmp_path: Path) -> None:
        from click.testing import CliRunner
        from mlflow.models.cli import commands

        request, answer = tmp_path / "request.json", tmp_path / "answer.json"
        request.write_bytes((saved / "serving_input_example.json").read_bytes())
        arguments = [
            "predict",
            "-m",
            str(saved),
            "-i",
            str(request),
            "-o",
            str(answer),
            "--env-manager",
            "local",
        ]
        done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        predictions = json.loads(answer.read_text(encoding="utf-8"))["predictions"]
        same_answer(predictions, case.expected, max(case.atol, 1e-3))

    @pytest.mark.slow
    def test_models_serve(self, case: FlavorCase, saved: Path, served: Served) -> None:
        import requests

        _wait(f"{served.url}/ping", served)
        body = (saved / "serving_input_example.json").read_bytes()
        headers = {"Content-Type": "application/json"}
        response = requests.post(f"{served.url}/invocations", data=body, headers=headers, timeout=60)
        assert response.status_code == 200, response.text
        same_answer(response.json()["predictions"], case.expected, max(case.atol, 1e-3))


@dataclass(frozen=True)
class Served:
    """A server that was started: its address, process and log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def _size(path: Path) -> int:
    return path.stat().st_size


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, served: Served) -> None:
    import requests

    deadline = time.monotonic() + _SERVE_SECONDS
    while time.monotonic() < deadline:
        if served.process.poll() is not None:
            break
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.fail(f"the server does not answer:\n{served.log.read_text(errors='replace')[-3000:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    import signal

    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
