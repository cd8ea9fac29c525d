"""Prometheus alert rules, an Alertmanager configuration and a scrape configuration, made from `definitions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflow_deploy.monitoring import definitions as d
from mlflow_deploy.settings import setting

REVISION = "deployment, revision"


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """What the alert rules count as a problem; each is an option of `mlflow-deploy monitor rules`.

    Durations are written as Prometheus writes them, such as 30s, 5m or 1d.
    """

    server_job: str = setting("mlflow-deploy-servers", "Scrape job of the scoring servers")
    monitor_job: str = setting("mlflow-deploy-monitors", "Scrape job of the monitors' exporters")
    rate_window: str = setting("5m", "Time that rates and quantiles are taken over")
    pending: str = setting("5m", "How long errors or slow answers must last")
    down: str = setting("2m", "How long a server or a monitor must be gone")
    error_share: float = setting(0.05, "Share of requests that may fail by the server's fault")
    overload_share: float = setting(
        0.05, "Share of requests that may be turned away because the server is busy"
    )
    latency_seconds: float = setting(1.0, "Time that 95 % of the answers must keep within")
    quality_loss: float = setting(
        0.05, "Estimated loss, as a share of the reference, that is told before labels come"
    )
    heartbeat_seconds: float = setting(
        300.0, "Age of a monitor's last sign of life from which on it counts as stuck"
    )
    late_windows: float = setting(3.0, "Lengths of a window that may pass without a new one")
    hold: str = setting("1d", "How long the last verdict of a monitor that died goes on to count")


def rules(settings: RuleSettings | None = None) -> dict[str, Any]:
    """The alert rules as the document that Prometheus reads."""
    settings = settings or RuleSettings()
    return {
        "groups": [
            {"name": "mlflow-deploy-servers", "rules": _server_rules(settings)},
            {"name": "mlflow-deploy-models", "rules": [*_records(), *_model_rules(settings)]},
            {"name": "mlflow-deploy-monitors", "rules": _monitor_rules(settings)},
        ]
    }


def _server_rules(s: RuleSettings) -> list[dict[str, Any]]:
    requests = f"sum by ({REVISION}) (rate({d.REQUESTS.name}[{s.rate_window}]))"

    def share(statuses: str) -> str:
        # A revision without any such answer has no series, and so no alert.
        chosen = f'sum by ({REVISION}) (rate({d.REQUESTS.name}{{status=~"{statuses}"}}[{s.rate_window}]))'
        return f"{chosen} / {requests}"

    buckets = f'{d.REQUEST_SECONDS.name}_bucket{{protocol!="other"}}'
    where = "{{ $labels.deployment }} revision {{ $labels.revision }}"
    return [
        _rule(
            "MlflowDeployServerDown",
            f'up{{job="{s.server_job}"}} == 0',
            s.down,
            "critical",
            f"A server of {where} does not answer",
            "Prometheus cannot scrape {{ $labels.instance }}.",
        ),
        _rule(
            "MlflowDeployServersAbsent",
            f'absent(up{{job="{s.server_job}"}})',
            s.down,
            "critical",
            "No scoring server is known to Prometheus",
            "The scrape job has no targets: run `mlflow-deploy monitor targets`.",
        ),
        _rule(
            "MlflowDeployErrors",
            f"{share('5..')} > {s.error_share:g}",
            s.pending,
            "critical",
            f"{{{{ $value | humanizePercentage }}}} of the requests to {where} fail",
            f"More than {s.error_share:.0%} are answered with status 500 and above.",
        ),
        _rule(
            "MlflowDeployOverload",
            f"{share('429')} > {s.overload_share:g}",
            s.pending,
            "warning",
            f"{{{{ $value | humanizePercentage }}}} of the requests to {where} are turned away",
            "The queue is full: more replicas or workers are needed.",
        ),
        _rule(
            "MlflowDeployLatency",
            f"histogram_quantile(0.95, sum by ({REVISION}, le) (rate({buckets}[{s.rate_window}]))) "
            f"> {s.latency_seconds:g}",
            s.pending,
            "warning",
            f"95 % of the answers of {where} take up to {{{{ $value | humanizeDuration }}}}",
            f"They should keep within {s.latency_seconds:g} s.",
        ),
        _rule(
            "MlflowDeployCaptureDropped",
            f"sum by ({REVISION}) (increase({d.CAPTURE_DROPPED.name}[{s.rate_window}])) > 0",
            s.pending,
            "warning",
            f"{where} does not capture all requests",
            "The monitors judge less than was served: the disk is slow or full, or the queue too short.",
        ),
    ]


def _model_rules(s: RuleSettings) -> list[dict[str, Any]]:
    where = "{{ $labels.deployment }} revision {{ $labels.revision }}"

    found = []
    for name, kind, what in (
        ("MlflowDeployDrift", "drift", "The data of {where} drifted"),
        ("MlflowDeployPerformance", "performance", "{where} performs worse than it should"),
    ):
        for level, severity in ((2, "critical"), (1, "warning")):
            found.append(
                _rule(
                    name,
                    _standing(f'mlflow_deploy:monitor_verdict{{monitor="{kind}"}}', f"== {level}", s),
                    "0s",
                    severity,
                    what.format(where=where),
                    "See `mlflow-deploy monitor report {{ $labels.deployment }}`. The verdict stays until "
                    "a later window has another one, also while the monitor is dead.",
                )
            )
    found.append(
        _rule(
            "MlflowDeployEstimate",
            _standing('mlflow_deploy:quality_loss_ratio{origin="estimated"}', f"> {s.quality_loss:g}", s),
            "0s",
            "warning",
            f"{{{{ $labels.metric }}}} of {where} is estimated to be worse by "
            "{{ $value | humanizePercentage }}",
            "An estimate without labels; it cannot see a change of the concept.",
        )
    )
    return found


def _records() -> list[dict[str, Any]]:
    return [{"record": name, "expr": expression} for name, expression in d.RECORDED.items()]


def _standing(series: str, condition: str, s: RuleSettings) -> str:
    """What a series says while its exporter lives, and what it said last when it does not.

    Without the second half the death of an exporter would resolve its alerts.
    """
    return (
        f"{series} {condition} or "
        f"(last_over_time({series}[{s.hold}]) {condition} unless on (deployment) {d.HEARTBEAT.name})"
    )


def _monitor_rules(s: RuleSettings) -> list[dict[str, Any]]:
    where = "{{ $labels.deployment }} revision {{ $labels.revision }}"
    late = f"time() - {d.WINDOW_END.name} > {s.late_windows:g} * {d.WINDOW_SECONDS.name}"
    return [
        _rule(
            "MlflowDeployMonitorDown",
            f'up{{job="{s.monitor_job}"}} == 0',
            s.down,
            "critical",
            "The monitor of {{ $labels.deployment }} does not answer",
            "Its alerts stand as they were; nobody looks for new ones.",
        ),
        _rule(
            "MlflowDeployMonitorsAbsent",
            f'absent(up{{job="{s.monitor_job}"}})',
            s.down,
            "critical",
            "No monitor is known to Prometheus",
            "The scrape job has no targets: run `mlflow-deploy monitor targets`.",
        ),
        _rule(
            "MlflowDeployMonitorGone",
            f"max by (deployment) (last_over_time({d.HEARTBEAT.name}[1h])) "
            f"unless on (deployment) {d.HEARTBEAT.name}",
            s.down,
            "critical",
            "The monitor of {{ $labels.deployment }} is gone",
            "It was there within the last hour and exports nothing now. Its alerts stand as they were.",
        ),
        _rule(
            "MlflowDeployMonitorStuck",
            f"max by (deployment) (time() - {d.HEARTBEAT.name}) > {s.heartbeat_seconds:g}",
            "0s",
            "critical",
            "The monitor of {{ $labels.deployment }} is stuck",
            "Its exporter answers and its job gave no sign of life for {{ $value | humanizeDuration }}.",
        ),
        _rule(
            "MlflowDeployMonitorLate",
            f"max by ({REVISION}, monitor) ({late})",
            s.down,
            "warning",
            f"The {{{{ $labels.monitor }}}} monitor of {where} is late",
            "Its last window ended {{ $value | humanizeDuration }} ago.",
        ),
        _rule(
            "MlflowDeployMonitorFailed",
            f'max by ({REVISION}, monitor) ({d.STATE.name}{{state="error"}}) == 1',
            "0s",
            "warning",
            f"The {{{{ $labels.monitor }}}} monitor of {where} failed",
            "`mlflow-deploy monitor status {{ $labels.deployment }}` says why.",
        ),
        _rule(
            "MlflowDeployNotificationsStuck",
            f"max by (deployment) ({d.NOTICES_OLDEST.name}) > 600",
            "0s",
            "warning",
            "Messages of the monitor of {{ $labels.deployment }} are not delivered",
            "The oldest waits for {{ $value | humanizeDuration }}; the monitor's log says why.",
        ),
    ]


def _rule(
    name: str, expression: str, duration: str, severity: str, summary: str, description: str
) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": duration,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": description},
    }


def alertmanager(webhook: str = "http://127.0.0.1:9095/alerts") -> dict[str, Any]:
    """An Alertmanager configuration to start from: grouping by deployment, inhibition, three receivers.

    Args:
        webhook: URL that gets every alert.
    """
    down = ["MlflowDeployServerDown", "MlflowDeployServersAbsent"]
    silent = ["MlflowDeployMonitorDown", "MlflowDeployMonitorGone"]
    return {
        "route": {
            "receiver": "mlflow-deploy",
            "group_by": ["deployment"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "24h",
        },
        "inhibit_rules": [
            {
                "source_matchers": ['severity="critical"'],
                "target_matchers": ['severity="warning"'],
                "equal": ["alertname", "deployment", "revision"],
            },
            {
                "source_matchers": [f'alertname=~"{"|".join(down)}"'],
                "target_matchers": [
                    'alertname=~"MlflowDeployErrors|MlflowDeployLatency|MlflowDeployOverload"'
                ],
                "equal": ["deployment", "revision"],
            },
            {
                "source_matchers": [f'alertname="{silent[0]}"'],
                "target_matchers": [f'alertname="{silent[1]}"'],
                "equal": ["deployment"],
            },
        ],
        "receivers": [
            {"name": "mlflow-deploy", "webhook_configs": [{"url": webhook, "send_resolved": True}]},
            {
                "name": "slack",
                "slack_configs": [
                    {
                        "api_url_file": "/etc/alertmanager/slack-url",
                        "channel": "#models",
                        "send_resolved": True,
                        "title": "{{ .CommonLabels.deployment }}: {{ .Status }}",
                        "text": "{{ range .Alerts }}{{ .Annotations.summary }}\n{{ end }}",
                    }
                ],
            },
            {
                "name": "email",
                "email_configs": [
                    {
                        "to": "models@example.com",
                        "from": "alertmanager@example.com",
                        "smarthost": "smtp.example.com:587",
                        "auth_username": "alertmanager",
                        "auth_password_file": "/etc/alertmanager/smtp-password",
                        "send_resolved": True,
                    }
                ],
            },
        ],
    }


def scrape_config(
    targets: str = "/etc/prometheus/mlflow-deploy",
    rules_file: str = "/etc/prometheus/mlflow-deploy-rules.yml",
    *,
    settings: RuleSettings | None = None,
    interval: str = "15s",
    alertmanagers: tuple[str, ...] = ("127.0.0.1:9093",),
) -> dict[str, Any]:
    """A Prometheus configuration that finds deployments in the files of `mlflow-deploy monitor targets`.

    Args:
        targets: folder of those files.
    """
    settings = settings or RuleSettings()
    jobs = ((settings.server_job, "servers.json"), (settings.monitor_job, "monitors.json"))
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [rules_file],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]},
        "scrape_configs": [
            {
                "job_name": job,
                # What exporters say of deployment and revision holds; the target's labels fill in.
                "honor_labels": True,
                "file_sd_configs": [{"files": [f"{targets}/{file}"], "refresh_interval": interval}],
            }
            for job, file in jobs
        ],
    }
