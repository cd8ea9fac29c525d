"""What the exporter says of records, and that the definitions name exactly what servers and monitors export."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy.errors import PortInUse
from mlflow_deploy.monitoring.actions import after_window
from mlflow_deploy.monitoring.alert_state import ActionEntry, AlertState, Delivery, Message
from mlflow_deploy.monitoring.definitions import definitions
from mlflow_deploy.monitoring.exporter import MAX_COLUMNS, Exporter, Snapshot, exposition
from mlflow_deploy.monitoring.results import WindowResult
from mlflow_deploy.monitoring.store import ResultStore
from mlflow_deploy.serving import exposition as serving
from mlflow_deploy.serving.metrics import SharedMetrics


def result(day: int, state: str, **more: Any) -> WindowResult:
    return WindowResult(
        deployment="flights",
        revision=1,
        kind=more.pop("kind", "drift"),
        start=f"2013-07-{day:02d}T00:00:00+00:00",
        end=f"2013-07-{day + 1:02d}T00:00:00+00:00",
        rows=100,
        state=state,  # type: ignore[arg-type]
        summary="",
        finished_at="",
        **more,
    )


def samples(*results: WindowResult, **more: Any) -> dict[tuple[str, ...], float]:
    """(metric, label values) -> number."""
    found = Snapshot(
        deployment="flights",
        results=results,
        heartbeat=5.0,
        alerts=more.pop("alerts", AlertState()),
        now=100.0,
    )
    text = exposition([found])[0].decode()
    return {
        (
            sample.name.removeprefix("mlflow_deploy_"),
            *(sample.labels[key] for key in ORDER[sample.name]),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


AT = ("flights", "1")
ORDER = {metric.name: metric.labels for metric in definitions()}


def test_a_window_without_a_verdict_leaves_the_standing_one() -> None:
    columns = {"temp": {"statistic": 0.4, "drifted": 1.0, "missing_share": 0.1}}
    told = samples(result(1, "ok"), result(2, "alert", columns=columns), result(3, "not_enough_data"))
    assert told["monitor_verdict", *AT, "drift"] == 2
    assert told["monitor_state", *AT, "drift", "not_enough_data"] == 1
    assert told["monitor_state", *AT, "drift", "alert"] == 0
    assert told["drift_column_distance", *AT, "temp"] == 0.4
    assert told["drift_column_missing_share", *AT, "temp"] == 0.1
    assert told["monitor_window_seconds", *AT, "drift"] == 86400
    assert told["monitor_windows", *AT, "drift", "alert"] == 1


def test_many_columns_are_bounded_and_the_drifted_ones_come_first() -> None:
    columns = {f"c{at}": {"statistic": at / 1000, "drifted": float(at < 3)} for at in range(200)}
    told = samples(result(1, "alert", columns=columns))
    exported = {key[3] for key in told if key[0] == "drift_column_distance"}
    assert len(exported) == MAX_COLUMNS
    assert {"c0", "c1", "c2", "c199"} <= exported
    assert told["drift_columns_omitted", *AT] == 150
    assert (told["drift_columns", *AT], told["drift_columns_drifted", *AT]) == (200, 3)


def test_quality_comes_from_the_latest_window_that_has_it_and_losses_have_a_sign() -> None:
    measured = {"performance.roc_auc": 0.6, "reference.roc_auc": 0.8, "performance.log_loss": 0.5,
                "reference.log_loss": 0.4, "performance_low.roc_auc": 0.5}  # fmt: skip
    told = samples(
        result(1, "alert", kind="performance", values=measured),
        result(
            2, "not_enough_data", kind="performance", values={"estimate.roc_auc": 0.72, "traffic.rows": 9.0}
        ),
    )
    assert told["quality", *AT, "roc_auc"] == 0.6
    assert told["quality_estimate", *AT, "roc_auc"] == 0.72
    assert told["quality_loss_ratio", *AT, "roc_auc", "measured"] == pytest.approx(0.25)
    assert told["quality_loss_ratio", *AT, "roc_auc", "estimated"] == pytest.approx(0.1)
    assert told["quality_loss_ratio", *AT, "log_loss", "measured"] == pytest.approx(0.25)
    assert told["monitor_value", *AT, "performance", "traffic.rows"] == 9
    assert ("monitor_value", *AT, "performance", "performance_low.roc_auc") not in told


def everything() -> str:
    """The exposition of a deployment that has something of everything."""
    values = {"performance.mae": 1.0, "estimate.mae": 2.0, "reference.mae": 1.0, "latency.p95_ms": 3.0}
    columns = {"temp": {"statistic": 0.4, "drifted": 1.0, "missing_share": 0.1}}
    message = Message(id="1", deployment="flights", at="", notices=())
    alerts = AlertState(
        deliveries=[Delivery(message=message, channel="slack", created=40.0, due=0.0)],
        actions=[ActionEntry(id="1", action="rollback", revision=1, kind="drift", reason="", wanted=0.0)],
    )
    results = [result(1, "alert", columns=columns), result(1, "ok", kind="performance", values=values)]
    found = Snapshot(deployment="flights", results=results, heartbeat=5.0, alerts=alerts, now=100.0)
    return exposition([found])[0].decode()


@pytest.mark.parametrize("source", ["server", "monitor"])
def test_the_definitions_name_what_is_exported(source: str) -> None:
    if source == "server":
        labels = ("deployment", "revision", "model_name", "model_version", "bundle", "format")
        text = serving.exposition(SharedMetrics(1), dict.fromkeys(labels, "x"))[0].decode()
    else:
        text = everything()
    exported = {
        family.name: (family.documentation, family.type)
        for family in text_string_to_metric_families(text)
        if family.name.startswith("mlflow_deploy_")
    }
    kinds = {"info": "gauge"}
    defined = {
        metric.name.removesuffix("_total"): (metric.help, kinds.get(metric.kind, metric.kind))
        for metric in definitions()
        if metric.source == source
    }
    assert exported == defined


def test_labels_are_those_of_the_definitions() -> None:
    by_name = {metric.name: metric for metric in definitions()}
    seen = [sample for family in text_string_to_metric_families(everything()) for sample in family.samples]
    assert {sample.name for sample in seen} == {
        name for name, metric in by_name.items() if metric.source == "monitor"
    }
    assert all(set(sample.labels) == set(by_name[sample.name].labels) for sample in seen)


def test_an_exporter_that_comes_back_says_the_same(tmp_path: Path) -> None:
    ResultStore(tmp_path).commit(result(1, "alert"))
    said = []
    for _ in range(2):
        exporter = Exporter(tmp_path, "flights")
        with pytest.raises(PortInUse):
            Exporter(tmp_path, "other", port=exporter.port)
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics") as answer:
            said.append(answer.read())
        assert (tmp_path / "monitor" / "exporter.json").read_text() == f"127.0.0.1:{exporter.port}"
        exporter.close()
    assert said[0] == said[1]
    assert b'mlflow_deploy_monitor_verdict{deployment="flights",monitor="drift",revision="1"} 2.0' in said[0]


def test_a_damaged_record_makes_the_scrape_fail_instead_of_looking_well(tmp_path: Path) -> None:
    from mlflow_deploy.config_monitor import ActionSpec, AlertSpec

    after_window(tmp_path, result(1, "alert"), AlertSpec(), ActionSpec())
    (tmp_path / "monitor" / "alerts.json").write_text("{")
    exporter = Exporter(tmp_path, "flights")
    try:
        with pytest.raises(urllib.error.HTTPError, match="500") as error:
            urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics")
        error.value.close()
    finally:
        exporter.close()
