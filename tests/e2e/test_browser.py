"""Chromium on the pages of a real MLflow server: a reviewer's click deploys, and the page says how it ended."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests

from mlflow_deploy.lifecycle.controller.loop import follow
from mlflow_deploy.lifecycle.controller.reconcile import Event
from mlflow_deploy.lifecycle.records.moves_of_model import moves_of
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.supervisor import Supervisor
from tests.e2e.mlflow_server import serving
from tests.waiting import eventually

pytestmark = pytest.mark.slow

MODEL = "reviewed"
POLICY = """
models:
  reviewed:
    stages:
      - name: Production
        deployment: "{model}"
        strategy: canary
        config: {gateway: envoy, format: onnx, canary_steps: "50", step_seconds: 1, monitor: none,
          analysis.max_answer_shift: "0", analysis.max_latency_ratio: "10"}
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
        driver: of the browser.
        lines: monotonic time of each step that the controller told.
    """

    uri: str
    driver: Any
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
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as beside:
        for name, value in {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "not a secret",
            "MLFLOW_DEPLOY_HOME": str(folder / "home"),
            "MLFLOW_DEPLOY_POLICY": str(folder / "lifecycle.yaml"),
            "MLFLOW_TRACKING_USERNAME": "keeper",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }.items():
            patch.setenv(name, value)
        # Browser and server both take long to start.
        driver = beside.submit(_browser)
        try:
            with serving("mlflow-deploy-auth", folder, tracking, MODEL, (1, 2), {}) as uri:
                found = Review(uri, driver.result())
                controller = threading.Thread(target=_follow, args=(found, stop))
                mlflow.MlflowClient().set_registered_model_alias(MODEL, "champion", "1")
                controller.start()
                try:
                    _make_reviewer(uri)
                    eventually(lambda: len(found.events) == 1, 60, "version 1 is deployed")
                    yield found
                finally:
                    stop.set()
                    controller.join()
                    Supervisor(folder / "home" / "local").shut_down()
        finally:
            driver.result().quit()


def _browser() -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for each in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1500,1300"):
        options.add_argument(f"--{each}")
    return webdriver.Chrome(options, Service(shutil.which("chromedriver")))


def _make_reviewer(uri: str) -> None:
    """ada, who may move versions."""
    users, keeper = f"{uri}/api/2.0/mlflow/users", ("keeper", PASSWORD)
    requests.post(
        f"{users}/create", json={"username": "ada", "password": PASSWORD}, auth=keeper, timeout=60
    ).raise_for_status()
    requests.patch(
        f"{users}/update-admin", json={"username": "ada", "is_admin": True}, auth=keeper, timeout=60
    ).raise_for_status()


def _follow(review: Review, stop: threading.Event) -> None:
    follow(
        policy=None, models=(), every=False, interval=300, once=False, stop=stop, tell=review.events.append,
        progress=lambda line: _note(review, line),
    )  # fmt: skip


def _note(review: Review, line: str) -> None:
    # Versions are prepared whether or not somebody clicks.
    if not line.startswith("Preparing"):
        review.lines.append(time.monotonic())


class Page:
    """MLflow's page of a version, as ada sees it."""

    def __init__(self, uri: str, driver: Any, shots: Path) -> None:
        self._driver = driver
        self._uri, self._shots = uri, shots
        # The pages cannot ask the server while the password is in the address; the browser keeps it.
        self._driver.get(f"{uri.replace('//', f'//ada:{PASSWORD}@')}/version")

    def open(self, version: str, text: str) -> None:
        """Load a version's page anew, until it says something."""
        self.go(f"models/{MODEL}/versions/{version}", text)

    def go(self, place: str, text: str) -> None:
        """Load a page of the application anew, until it says something."""
        loaded = -math.inf

        def says() -> bool:
            nonlocal loaded
            # What a page cannot fetch in time it does not ask for again.
            if time.monotonic() - loaded > 40:
                self._driver.get("about:blank")
                self._driver.get(f"{self._uri}/#/{place}")
                loaded = time.monotonic()
            return text in self.text()

        eventually(says, 60, f"the page {place} says {text}")

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
def page(review: Review, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(review.uri, review.driver, tmp_path_factory.mktemp("screenshots"))


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


@pytest.mark.alone
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


@pytest.mark.alone
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


def test_the_pages_of_a_custom_flavor_are_whole(review: Review, page: Page) -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    from mlflow_deploy.flavors import onnx

    features, labels = load_iris(return_X_y=True, as_frame=True)
    model = LogisticRegression(max_iter=500).fit(features, labels)
    with mlflow.start_run() as run:
        info = onnx.log_model(
            model, name="flowers", input_example=features.head(3), registered_model_name="flowers"
        )
    experiment = run.info.experiment_id
    shown = {
        f"experiments/{experiment}/models/{info.model_id}": "Ready",
        f"experiments/{experiment}/models/{info.model_id}/artifacts": "MLmodel",
        "models/flowers/versions/1": "Aliases",
    }
    for number, (place, text) in enumerate(shown.items()):
        page.go(place, text)
        page.shoot(f"5-custom-flavor-{number}")
        for wrong in ("Something went wrong", "Page not found", "Failed to load", "Unable to"):
            assert wrong not in page.text(), place
