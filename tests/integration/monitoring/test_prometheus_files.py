"""Rules, Alertmanager configuration and dashboards, judged by the programs that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mlflow_deploy.cli import group
from mlflow_deploy.monitoring.dashboards import WIDTH, dashboards, expressions
from mlflow_deploy.monitoring.definitions import RECORDED, definitions, known_series, named_series
from mlflow_deploy.monitoring.rules import RuleSettings, rules
from tests.integration.monitoring.programs import check

WHERE = {"deployment": "flights", "revision": "1"}


def command(*arguments: str) -> str:
    return CliRunner().invoke(group, ["monitor", *arguments], catch_exceptions=False).output


def write(path: Path, document: Any) -> str:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(path)


def test_the_printed_rules_are_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    assert command("rules", "--error-share", "0.2", "-o", str(file)) == ""
    check("promtool", "check", "rules", str(file))
    alerts = {rule.get("alert"): rule for group_ in yaml.safe_load(file.read_text())["groups"]
              for rule in group_["rules"]}  # fmt: skip
    assert alerts["MlflowDeployErrors"]["expr"].endswith("> 0.2")


def test_rules_and_dashboards_name_only_metrics_that_there_are() -> None:
    queries = [rule["expr"] for group_ in rules()["groups"] for rule in group_["rules"]]
    queries += [query for each in dashboards().values() for _, query in expressions(each)]
    used = frozenset[str]().union(*map(named_series, queries))
    assert used <= known_series()
    # And each metric of the monitors is looked at somewhere.
    unused = {metric.name for metric in definitions() if metric.source == "monitor"} - used
    unused -= {name for expression in RECORDED.values() for name in named_series(expression)}
    assert unused == {
        "mlflow_deploy_drift_columns_omitted", "mlflow_deploy_monitor_window_labels",
        "mlflow_deploy_notifications_failed_total",
    }  # fmt: skip


def test_the_other_configurations_are_taken(tmp_path: Path) -> None:
    check("amtool", "check-config", write(tmp_path / "am.yml", yaml.safe_load(command("alertmanager"))))
    (tmp_path / "targets").mkdir()
    for name in ("servers", "monitors"):
        (tmp_path / "targets" / f"{name}.json").write_text("[]")
    command("rules", "-o", str(tmp_path / "rules.yml"))
    text = command(
        "prometheus", "--targets", str(tmp_path / "targets"), "--rules-file", f"{tmp_path}/rules.yml"
    )
    (tmp_path / "prometheus.yml").write_text(text)
    check("promtool", "check", "config", str(tmp_path / "prometheus.yml"))


def test_every_query_of_the_dashboards_parses(tmp_path: Path) -> None:
    command("dashboards", "-o", str(tmp_path))
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == dashboards().keys()
    queries = [query for each in found.values() for _, query in expressions(each)]
    assert not any("$" in query for query in queries), "a variable that Grafana does not know"
    records = [{"record": f"query_{at}", "expr": query} for at, query in enumerate(queries)]
    check(
        "promtool", "check", "rules", write(tmp_path / "q.yml", {"groups": [{"name": "q", "rules": records}]})
    )
    broken = [{"record": "broken", "expr": queries[0] + ")"}]
    file = write(tmp_path / "b.yml", {"groups": [{"name": "b", "rules": broken}]})
    with pytest.raises(AssertionError, match="parse"):
        check("promtool", "check", "rules", file)


@pytest.mark.parametrize("name", dashboards())
def test_panels_have_a_place_of_their_own(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboards()[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def rule_test(series: dict[str, str], *expected: tuple[str, str, list[dict[str, str]]]) -> dict[str, Any]:
    """A test for promtool: series in its notation, a minute per value; time, alert, labels of what fires."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": at, "alertname": name, "exp_alerts": [{"exp_labels": labels} for labels in fires]}
            for at, name, fires in expected
        ],
    }


def test_rules_fire_when_they_should(tmp_path: Path) -> None:
    at = 'deployment="flights",revision="1"'
    alive = 'mlflow_deploy_monitor_heartbeat_timestamp_seconds{deployment="flights"'
    loss = f'mlflow_deploy_quality_loss_ratio{{{at},metric="roc_auc"'
    requests = 'mlflow_deploy_requests_total{deployment="flights",protocol="mlflow"'
    drift = {"severity": "critical", "monitor": "drift", **WHERE}
    gone = {"severity": "critical", "deployment": "flights"}
    monitors = 'up{job="mlflow-deploy-monitors",instance="m",deployment="flights"}'
    down = {"severity": "critical", "job": "mlflow-deploy-monitors", "instance": "m", "deployment": "flights"}
    late = {"severity": "warning", "monitor": "drift", **WHERE}
    errors = {"severity": "critical", **WHERE}
    tests = [
        # A drift, the death of its exporter, its return on another port, and the end of the drift.
        rule_test(
            {
                f'mlflow_deploy_monitor_verdict{{{at},monitor="drift",instance="m"}}': "0x4 2x14 stale",
                f'mlflow_deploy_monitor_verdict{{{at},monitor="drift",instance="n"}}': "_x44 2x9 0x9",
                f'{alive},instance="m"}}': "0+60x19 stale",
                f'{alive},instance="n"}}': "_x44 2700+60x19",
                monitors: "1x19 0x24 1x20",
            },
            ("3m", "MlflowDeployDrift", []),
            ("10m", "MlflowDeployDrift", [drift]),
            ("10m", "MlflowDeployMonitorGone", []),
            ("40m", "MlflowDeployDrift", [drift]),
            ("40m", "MlflowDeployMonitorGone", [gone]),
            ("40m", "MlflowDeployMonitorDown", [down]),
            ("50m", "MlflowDeployDrift", [drift]),
            ("50m", "MlflowDeployMonitorGone", []),
            ("60m", "MlflowDeployDrift", []),
        ),
        # A drift that is over must not come back when the exporter dies, whatever address said so before.
        rule_test(
            {
                f'mlflow_deploy_monitor_verdict{{{at},monitor="drift",instance="m"}}': "2x9 stale",
                f'mlflow_deploy_monitor_verdict{{{at},monitor="drift",instance="n"}}': "_x9 0x9 stale",
                f'{alive},instance="n"}}': "_x9 0x9 stale",
            },
            ("5m", "MlflowDeployDrift", [drift]),
            ("15m", "MlflowDeployDrift", []),
            ("40m", "MlflowDeployDrift", []),
        ),
        # A revision that was replaced takes its alert with it.
        rule_test(
            {
                f'mlflow_deploy_monitor_verdict{{{at},monitor="drift"}}': "2x9 stale",
                f"{alive}}}": "0+60x40",
            },
            ("5m", "MlflowDeployDrift", [drift]),
            ("20m", "MlflowDeployDrift", []),
        ),
        # No window for more than three lengths, a job that hangs, an estimate that falls, a monitor that fails.
        rule_test(
            {
                f'mlflow_deploy_monitor_window_end_timestamp_seconds{{{at},monitor="drift"}}': "600x60",
                f'mlflow_deploy_monitor_window_seconds{{{at},monitor="drift"}}': "600x60",
                f"{alive}}}": "0+60x30 1800x30",
                f'{loss},origin="estimated"}}': "0.01x30 0.1x30",
                f'{loss},origin="measured"}}': "0.5x60",
                f'mlflow_deploy_monitor_state{{{at},monitor="drift",state="error"}}': "0x30 1x30",
            },
            ("30m", "MlflowDeployMonitorLate", []),
            ("50m", "MlflowDeployMonitorLate", [late]),
            ("30m", "MlflowDeployMonitorStuck", []),
            ("50m", "MlflowDeployMonitorStuck", [gone]),
            ("29m", "MlflowDeployEstimate", []),
            ("50m", "MlflowDeployEstimate",
             [{"severity": "warning", "metric": "roc_auc", "origin": "estimated", **WHERE}]),
            ("29m", "MlflowDeployMonitorFailed", []),
            ("50m", "MlflowDeployMonitorFailed", [late]),
        ),
        # A tenth of the requests fails; another revision has no errors and no alert.
        rule_test(
            {
                f'{requests},revision="1",status="200",instance="a"}}': "0+90x40",
                f'{requests},revision="1",status="500",instance="b"}}': "0+10x40",
                f'{requests},revision="2",status="200"}}': "0+9x40",
                f'mlflow_deploy_request_seconds_bucket{{{at},protocol="mlflow",le="1"}}': "0+10x40",
                f'mlflow_deploy_request_seconds_bucket{{{at},protocol="mlflow",le="2.5"}}': "0+100x40",
                f'mlflow_deploy_request_seconds_bucket{{{at},protocol="mlflow",le="+Inf"}}': "0+100x40",
                f'mlflow_deploy_capture_drops_total{{{at}}}': "0x20 0+5x20",
            },
            ("3m", "MlflowDeployErrors", []),
            ("20m", "MlflowDeployErrors", [errors]),
            ("20m", "MlflowDeployOverload", []),
            ("20m", "MlflowDeployLatency", [{"severity": "warning", **WHERE}]),
            ("20m", "MlflowDeployCaptureDropped", []),
            ("35m", "MlflowDeployCaptureDropped", [{"severity": "warning", **WHERE}]),
            # Nothing is scraped in this test.
            ("20m", "MlflowDeployServersAbsent", [{"severity": "critical", "job": "mlflow-deploy-servers"}]),
            ("20m", "MlflowDeployMonitorsAbsent", [{"severity": "critical", "job": "mlflow-deploy-monitors"}]),
        ),
    ]  # fmt: skip
    # promtool compares the words too; they are no part of when an alert fires.
    document = rules(RuleSettings())
    for group_ in document["groups"]:
        for rule in group_["rules"]:
            rule.pop("annotations", None)
    write(tmp_path / "rules.yml", document)
    write(tmp_path / "tests.yml", {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests})
    check("promtool", "test", "rules", str(tmp_path / "tests.yml"))
