"""Chromium on the pages of a real MLflow server: a reviewer's click deploys, and the page says how it ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from sklearn.linear_model import LinearRegression

from mlflow_deploy.lifecycle.controller.loop import follow
from mlflow_deploy.lifecycle.controller.reconcile import Event
from mlflow_deploy.lifecycle.records.moves_of_model import moves_of
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.supervisor import Supervisor
from tests.e2e.conftest import eventually

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
MODEL = "reviewed"
POLICY = """
models:
  reviewed:
    stages:
      - name: Production
        deployment: "{model}"
        strategy: canary
        config: {gateway: envoy, format: onnx, canary_steps: "50", step_seconds: 1, monitor: none}
        gates: [security, signature]
      - name: Archived
"""
AUTH = """
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = keeper
admin_password = {password}
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
PASSWORD = "correct-horse-battery"


@dataclass
class Review:
    """The server, and a controller that hardly ever looks by itself: what happens soon comes from hints.

    Attributes:
        uri: of the MLflow server.
        lines: monotonic time of each step that the controller told.
    """

    uri: str
    events: list[Event] = field(default_factory=list)
    lines: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def review(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Review]:
    """`mlflow server --app-name mlflow-deploy-auth` with two versions, the first in production."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("Debian's packages chromium and chromium-driver are not installed")
    folder = tmp_path_factory.mktemp("review")
    (folder / "auth.ini").write_text(AUTH.format(folder=folder, password=PASSWORD))
    (folder / "lifecycle.yaml").write_text(POLICY)
    stop = threading.Event()
    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        found = Review(f"http://127.0.0.1:{port}")
        for name, value in {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "not a secret",
            "MLFLOW_DEPLOY_HOME": str(folder / "home"),
            "MLFLOW_DEPLOY_POLICY": str(folder / "lifecycle.yaml"),
            "MLFLOW_TRACKING_USERNAME": "keeper",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "MLFLOW_TRACKING_URI": found.uri,
            "MLFLOW_REGISTRY_URI": found.uri,
        }.items():
            patch.setenv(name, value)
        probe.close()
        # Making the tables takes longer than all the rest.
        with (
            contextlib.closing(sqlite3.connect(tracking.removeprefix("sqlite:///"))) as made,
            contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store,
        ):
            made.backup(store)
        server = _serve(folder, port)
        controller = threading.Thread(target=_follow, args=(found, stop))
        try:
            eventually(lambda: _up(found.uri), 90, "the MLflow server is up")
            mlflow.set_tracking_uri(found.uri)
            mlflow.set_registry_uri(found.uri)
            _register()
            _make_reviewer(found.uri)
            controller.start()
            eventually(lambda: len(found.events) == 1, 60, "version 1 is deployed")
            yield found
        finally:
            stop.set()
            if controller.ident:
                controller.join()
            Supervisor(folder / "home" / "local").shut_down()
            mlflow.set_tracking_uri(tracking)
            mlflow.set_registry_uri(tracking)
            mlflow.set_experiment("tests")
            os.killpg(server.pid, 9)
            server.wait()


def _serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [str(BIN / "mlflow"), "server", "--app-name", "mlflow-deploy-auth", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    # The server looks for its store by arguments alone.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("Y_URI")}
    environment.pop("MLFLOW_TRACKING_URI")
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        )


def _up(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False


def _register() -> None:
    mlflow.set_experiment("training")
    rows = pd.DataFrame({"x": np.arange(8.0)})
    for factor in (1, 2):
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                LinearRegression().fit(rows, rows["x"] * factor),
                name="model",
                input_example=rows,
                registered_model_name=MODEL,
                pip_requirements=["scikit-learn"],
            )
    mlflow.MlflowClient().set_registered_model_alias(MODEL, "champion", "1")


def _make_reviewer(uri: str) -> None:
    """ada, who may move versions."""
    users, keeper = f"{uri}/api/2.0/mlflow/users", ("keeper", PASSWORD)
    requests.post(
        f"{users}/create", json={"username": "ada", "password": PASSWORD}, auth=keeper, timeout=10
    ).raise_for_status()
    requests.patch(
        f"{users}/update-admin", json={"username": "ada", "is_admin": True}, auth=keeper, timeout=10
    ).raise_for_status()


def _follow(review: Review, stop: threading.Event) -> None:
    follow(
        policy=None, models=(), every=False, interval=300, once=False, stop=stop, tell=review.events.append,
        progress=lambda line: review.lines.append(time.monotonic()),
    )  # fmt: skip


class Page:
    """MLflow's page of a version, as ada sees it."""

    def __init__(self, uri: str, shots: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for each in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1500,1300"):
            options.add_argument(f"--{each}")
        self._driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        self._uri, self._shots = uri, shots
        # The pages cannot ask the server while the password is in the address; the browser keeps it.
        self._driver.get(f"{uri.replace('//', f'//ada:{PASSWORD}@')}/version")

    def close(self) -> None:
        self._driver.quit()

    def open(self, version: str, text: str) -> None:
        """Load a version's page anew, until it says something."""
        self._driver.get("about:blank")
        self._driver.get(f"{self._uri}/#/models/{MODEL}/versions/{version}")
        eventually(lambda: text in self.text(), 60, f"the page of version {version} says {text}")

    def text(self) -> str:
        return str(self._driver.execute_script("return document.body ? document.body.innerText : ''"))

    def click(self, xpath: str) -> None:
        """Click on what is there and can be clicked soon."""
        from selenium.common.exceptions import WebDriverException

        def clicked() -> bool:
            try:
                self._driver.find_element("xpath", xpath).click()
            except WebDriverException:
                return False
            return True

        eventually(clicked, 20, f"{xpath} can be clicked")

    def type(self, xpath: str, text: str) -> None:
        """Type into a field that can be clicked soon, and Enter."""
        from selenium.webdriver.common.keys import Keys

        self.click(xpath)
        self._driver.find_element("xpath", xpath).send_keys(text, Keys.ENTER)

    def shoot(self, name: str) -> None:
        """Keep a picture in the test's folder."""
        assert self._driver.save_screenshot(str(self._shots / f"{name}.png"))


@pytest.fixture(scope="module")
def page(review: Review, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    found = Page(review.uri, tmp_path_factory.mktemp("screenshots"))
    yield found
    found.close()


def _watched(review: Review, clicked: float, what: str) -> tuple[float, float]:
    """Seconds from a click to the controller's first step, and to the candidate's first traffic."""
    target = open_target("local")
    eventually(lambda: any(at > clicked for at in review.lines), 10, f"the controller acts on {what}")

    def shared() -> bool:
        record: Any = target.read_record(MODEL)
        return sum(share > 0 for share in record.weights.values()) == 2

    eventually(shared, 60, "the canary has its share")
    canary = time.monotonic() - clicked
    acted = next(at for at in review.lines if at > clicked) - clicked
    print(f"{what}: the controller acts after {acted:.2f} s, the canary has traffic after {canary:.2f} s")
    return acted, canary


def test_a_stage_in_the_classic_view_deploys(review: Review, page: Page) -> None:
    page.open("2", "Aliases")
    page.click("//button[@role='switch']")
    page.click("//button[normalize-space()='Disable']")
    page.click("//div[normalize-space(text())='None']")
    page.click("//*[@role='menuitem'][contains(., 'Production')]")
    page.shoot("1-stage-transition")
    page.click("//button[normalize-space()='OK']")
    acted, canary = _watched(review, time.monotonic(), "the stage")
    assert acted < 1
    assert canary < 10
    eventually(lambda: len(review.events) == 2, 60, "version 2 is deployed")
    assert (review.events[1].action, review.events[1].version) == ("promoted", "2")
    page.open("2", "deployed as revision 2 of reviewed")
    page.shoot("2-deployed-by-stage")
    assert "By ada at" in page.text()
    moves = {(each.kind, each.what, each.before, each.after, each.by) for each in moves_of(MODEL)}
    assert ("stage", "2", "None", "Production", "ada") in moves
    assert mlflow.MlflowClient().get_registered_model(MODEL).aliases["champion"] == "2"


def test_an_alias_in_the_default_view_deploys(review: Review, page: Page) -> None:
    """The older version gets it: a rollback by a click."""
    page.click("//button[@role='switch']")
    page.open("1", "Aliases")
    page.click("//button[normalize-space()='Add']")
    page.type("//*[@role='dialog']//input[@role='combobox']", "champion")
    page.shoot("3-alias")
    page.click("//button[normalize-space()='Save aliases'][not(@disabled)]")
    acted, canary = _watched(review, time.monotonic(), "the alias")
    assert acted < 1
    assert canary < 10
    eventually(lambda: len(review.events) == 3, 60, "version 1 is deployed")
    assert (review.events[2].action, review.events[2].version) == ("promoted", "1")
    page.open("1", "deployed as revision 3 of reviewed")
    page.shoot("4-deployed-by-alias")
    moves = {(each.kind, each.what, each.before, each.after, each.by) for each in moves_of(MODEL)}
    assert ("alias", "champion", "2", "1", "ada") in moves
    assert mlflow.MlflowClient().get_model_version(MODEL, "1").current_stage == "Production"
