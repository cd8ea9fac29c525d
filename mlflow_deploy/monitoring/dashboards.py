"""Grafana dashboards made from `definitions`: overview, drift, quality; with provisioning files."""

from __future__ import annotations

from typing import Any

from mlflow_deploy.monitoring import definitions as d

WIDTH = 24
_SCHEMA = 39  # of Grafana 10; later ones migrate it by themselves
_PICK = 'deployment=~"$deployment", revision=~"$revision"'
_SOURCE = {"type": "prometheus", "uid": "$datasource"}


def dashboards() -> dict[str, dict[str, Any]]:
    """File name -> dashboard."""
    return {
        "mlflow-deploy-overview.json": _dashboard(
            "mlflow-deploy-overview", "MLflow deployments", d.MODEL.name, _overview()
        ),
        "mlflow-deploy-drift.json": _dashboard(
            "mlflow-deploy-drift", "MLflow deployments: drift", d.WINDOW_END.name, _drift()
        ),
        "mlflow-deploy-quality.json": _dashboard(
            "mlflow-deploy-quality", "MLflow deployments: quality", d.WINDOW_END.name, _quality()
        ),
    }


def provisioning(folder: str = "/var/lib/grafana/dashboards/mlflow-deploy") -> dict[str, dict[str, Any]]:
    """File name below Grafana's provisioning folder -> document, which makes it find dashboards and Prometheus.

    Args:
        folder: where the dashboards lie.
    """
    return {
        "dashboards/mlflow-deploy.yml": {
            "apiVersion": 1,
            "providers": [
                {
                    "name": "mlflow-deploy",
                    "folder": "MLflow deployments",
                    "type": "file",
                    "allowUiUpdates": False,
                    "options": {"path": folder},
                }
            ],
        },
        "datasources/mlflow-deploy.yml": {
            "apiVersion": 1,
            "datasources": [
                {
                    "name": "Prometheus",
                    "uid": "mlflow-deploy-prometheus",
                    "type": "prometheus",
                    "access": "proxy",
                    "url": "http://127.0.0.1:9090",
                    "isDefault": True,
                }
            ],
        },
    }


def expressions(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """(title, query) of each query of each panel, with values in place of Grafana's variables."""
    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for variable, value in (("$deployment", ".+"), ("$revision", ".+"), ("$__rate_interval", "5m")):
                query = query.replace(variable, value)
            found.append((panel["title"], query))
    return found


def _overview() -> list[dict[str, Any]]:
    requests, by = d.REQUESTS.name, "deployment, revision"

    def rate(selector: str = "") -> str:
        return f"sum by ({by}) (rate({requests}{{{_PICK}{selector}}}[$__rate_interval]))"

    def quantile(share: float, metric: d.MetricDefinition) -> str:
        return (
            f"histogram_quantile({share}, sum by ({by}, le) "
            f"(rate({metric.name}_bucket{{{_PICK}}}[$__rate_interval])))"
        )

    who = "{{deployment}} r{{revision}}"
    return [
        _stat("Servers and monitors up", 'sum(up{deployment=~"$deployment"})'),
        _stat("Requests per second", f"sum(rate({requests}{{{_PICK}}}[$__rate_interval]))", unit="reqps"),
        _stat("Worst verdict", f"max(mlflow_deploy:monitor_verdict{{{_PICK}}})", verdict=True),
        _table("What is served", f"max by ({', '.join(d.MODEL.labels)}) ({d.MODEL.name}{{{_PICK}}})"),
        _lines("Requests", "reqps", (rate(), who)),
        _lines(
            "Failed and turned away",
            "reqps",
            (rate(', status=~"5.."'), f"{who} failed"),
            (rate(', status="429"'), f"{who} turned away"),
        ),
        _lines(
            "Latency",
            "s",
            *((quantile(share, d.REQUEST_SECONDS), f"{who} p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
        ),
        _lines(
            "Model call and queue",
            "s",
            (quantile(0.95, d.MODEL_SECONDS), f"{who} model p95"),
            (quantile(0.95, d.QUEUE_SECONDS), f"{who} queue p95"),
        ),
        _lines(
            "In flight and waiting",
            "short",
            (f"sum by ({by}) ({d.IN_FLIGHT.name}{{{_PICK}}})", f"{who} in flight"),
            (f"sum by ({by}) ({d.QUEUE_LENGTH.name}{{{_PICK}}})", f"{who} waiting"),
        ),
        _lines(
            "Captured and dropped",
            "reqps",
            (f"sum by ({by}) (rate({d.CAPTURED.name}{{{_PICK}}}[$__rate_interval]))", f"{who} captured"),
            (
                f"sum by ({by}) (rate({d.CAPTURE_DROPPED.name}{{{_PICK}}}[$__rate_interval]))",
                f"{who} dropped",
            ),
        ),
    ]


def _drift() -> list[dict[str, Any]]:
    who = "{{deployment}} r{{revision}}"

    def latest(metric: d.MetricDefinition, *labels: str) -> str:
        by = ", ".join(("deployment", "revision", *labels))
        return f"max by ({by}) ({metric.name}{{{_PICK}}})"

    verdict = f'mlflow_deploy:monitor_verdict{{{_PICK}, monitor="drift"}}'
    return [
        _stat("Verdict", f"max({verdict})", verdict=True),
        _stat("Columns drifted", f"sum({d.DRIFT_DRIFTED.name}{{{_PICK}}})"),
        _stat(
            "Age of the last window", f'time() - max({d.WINDOW_END.name}{{{_PICK}, monitor="drift"}})', "s"
        ),
        _lines("Verdict (0 ok, 1 warning, 2 alert)", "short", (verdict, who)),
        _lines(
            "Columns that drifted",
            "short",
            (latest(d.DRIFT_DRIFTED), f"{who} drifted"),
            (latest(d.DRIFT_COLUMNS), f"{who} compared"),
        ),
        _lines("Distance by column", "short", (latest(d.COLUMN_DISTANCE, "column"), f"{who} {{{{column}}}}")),
        _lines(
            "Missing values by column",
            "percentunit",
            (latest(d.COLUMN_MISSING, "column"), f"{who} {{{{column}}}}"),
        ),
        _lines(
            "Rows per window",
            "short",
            (f'max by (deployment, revision) ({d.WINDOW_ROWS.name}{{{_PICK}, monitor="drift"}})', who),
        ),
        _table(
            "Columns that drifted in the last window",
            f"{latest(d.COLUMN_DISTANCE, 'column')} and on (deployment, revision, column) "
            f"({latest(d.COLUMN_DRIFTED, 'column')} == 1)",
        ),
    ]


def _quality() -> list[dict[str, Any]]:
    who = "{{deployment}} r{{revision}} {{metric}}"

    def latest(metric: d.MetricDefinition, *labels: str, pick: str = "") -> str:
        by = ", ".join(("deployment", "revision", *labels))
        return f"max by ({by}) ({metric.name}{{{_PICK}{pick}}})"

    verdict = f'mlflow_deploy:monitor_verdict{{{_PICK}, monitor="performance"}}'
    return [
        _stat("Verdict on quality", f"max({verdict})", verdict=True),
        _stat(
            "Rows with a label",
            f'max({d.VALUE.name}{{{_PICK}, monitor="performance", name="labels.coverage"}})',
            "percentunit",
        ),
        _stat("Largest loss", f"max({d.QUALITY_LOSS.name}{{{_PICK}}})", "percentunit"),
        _lines(
            "Quality: measured, estimated, reference",
            "short",
            (latest(d.QUALITY, "metric"), f"{who} measured"),
            (latest(d.QUALITY_ESTIMATE, "metric"), f"{who} estimated"),
            (latest(d.QUALITY_REFERENCE, "metric"), f"{who} reference"),
        ),
        _lines(
            "Loss as a share of the reference",
            "percentunit",
            (latest(d.QUALITY_LOSS, "metric", "origin"), f"{who} {{{{origin}}}}"),
        ),
        _lines(
            "Windows by state",
            "short",
            (
                latest(d.WINDOWS, "state", pick=', monitor="performance"'),
                "{{deployment}} r{{revision}} {{state}}",
            ),
        ),
        _lines(
            "Latency and errors of the windows",
            "short",
            (
                latest(d.VALUE, "name", pick=', monitor="performance", name=~"latency[.].*|errors[.].*"'),
                "{{deployment}} r{{revision}} {{name}}",
            ),
        ),
        _lines(
            "Messages that wait, and actions",
            "short",
            (
                f'max by (deployment) ({d.NOTICES_PENDING.name}{{deployment=~"$deployment"}})',
                "{{deployment}}",
            ),
            (
                f'sum by (deployment, action, outcome) ({d.ACTIONS.name}{{deployment=~"$deployment"}})',
                "{{deployment}} {{action}} {{outcome}}",
            ),
        ),
    ]


def _dashboard(uid: str, title: str, source: str, panels: list[dict[str, Any]]) -> dict[str, Any]:
    """Place the panels from left to right and top to bottom."""
    x = y = row = 0
    for number, panel in enumerate(panels, 1):
        wide, high = panel.pop("size")
        if x + wide > WIDTH:
            x, y, row = 0, y + row, 0
        panel |= {"id": number, "gridPos": {"x": x, "y": y, "w": wide, "h": high}, "datasource": _SOURCE}
        x, row = x + wide, max(row, high)
    return {
        "uid": uid,
        "title": title,
        "tags": ["mlflow-deploy"],
        "schemaVersion": _SCHEMA,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("deployment", f"label_values({source}, deployment)"),
                _variable("revision", f'label_values({source}{{deployment=~"$deployment"}}, revision)'),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _stat(title: str, query: str, unit: str = "short", *, verdict: bool = False) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": unit}
    if verdict:
        words = {"0": ("ok", "green"), "1": ("warning", "orange"), "2": ("alert", "red")}
        options = {value: {"text": text, "color": color} for value, (text, color) in words.items()}
        defaults["mappings"] = [{"type": "value", "options": options}]
    return {
        "type": "stat",
        "title": title,
        "size": (8, 4),
        "targets": [{"refId": "A", "expr": query, "instant": True}],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background"},
    }


def _lines(title: str, unit: str, *queries: tuple[str, str]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "size": (12, 8),
        "targets": [
            {"refId": chr(ord("A") + at), "expr": query, "legendFormat": legend}
            for at, (query, legend) in enumerate(queries)
        ],
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
    }


def _table(title: str, query: str) -> dict[str, Any]:
    return {
        "type": "table",
        "title": title,
        "size": (24, 6),
        "targets": [{"refId": "A", "expr": query, "instant": True, "format": "table"}],
        "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}],
    }
