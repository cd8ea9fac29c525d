"""MonitorSpec: what the user asks of the monitors of a deployment, of their alerts and of what follows them."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

REFERENCE = r"^(env:[A-Za-z_]\w*|file:.+)?$"
"""A secret that is named, not given."""


def listed(value: Any) -> Any:
    """Lists come from the command line as text with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class AlertSpec(BaseModel):
    """Who is told when a monitor alerts. What is given as env:NAME or file:PATH is read when it is used, and
    stays out of the deployment's record."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    level: Literal["warning", "alert"] = "alert"
    """Verdict from which on somebody is told."""
    webhook: str = ""
    """URL that messages are POSTed to as JSON; or env:NAME or file:PATH with it."""
    webhook_secret: str = Field(default="", pattern=REFERENCE)
    """Secret that signs the messages as MLflow's own webhooks are signed; as env:NAME or file:PATH."""
    slack: str = Field(default="", pattern=REFERENCE)
    """Incoming webhook of Slack or of what understands the same, as env:NAME or file:PATH with its URL."""
    email: tuple[str, ...] = ()
    """Addresses that get mail, such as a@example.com,b@example.com."""
    email_from: str = "mlflow-deploy@localhost"
    """Address that mail comes from."""
    smtp: str = Field(default="localhost:25", pattern=r"^[^:@\s]+:[0-9]+$")
    """Mail server, as HOST:PORT."""
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection to the mail server is protected; `none` sends no password."""
    smtp_user: str = ""
    """User of the mail server; unset = no login."""
    smtp_password: str = Field(default="", pattern=REFERENCE)
    """Password of that user, as env:NAME or file:PATH."""
    command: str = ""
    """Program with its arguments that gets each message as JSON on its standard input."""
    group_seconds: float = Field(default=10.0, ge=0)
    """How long a message waits for what other monitors find, to tell it together."""
    repeat_hours: float = Field(default=24.0, ge=0)
    """After how long an alert that goes on is told again; 0 = never."""
    give_up_hours: float = Field(default=24.0, gt=0)
    """How long delivering a message is tried."""

    @field_validator("email", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return listed(value)

    @field_validator("webhook")
    @classmethod
    def _check_webhook(cls, value: str) -> str:
        if value and not re.match(r"^(https?://[^@\s]+|env:\w+|file:.+)$", value):
            raise ValueError("it must be an http or https URL without a password, env:NAME or file:PATH")
        return value

    @model_validator(mode="after")
    def _check_login(self) -> AlertSpec:
        if self.smtp_user and self.smtp_security == "none":
            raise ValueError("smtp_user needs smtp_security=starttls or tls: its password would be readable")
        return self


MonitorAction = Literal["notify", "rollback", "pause-rollout", "retrain"]


class ActionSpec(BaseModel):
    """What is done when a monitor alerts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    drift: tuple[MonitorAction, ...] = ("notify",)
    """What an alert of the drift monitor leads to: notify, rollback, pause-rollout or retrain, or several."""
    performance: tuple[MonitorAction, ...] = ("notify",)
    """The same for the performance monitor."""
    after_windows: int = Field(default=2, ge=1)
    """Windows in a row that must alert before anything but `notify` is done."""
    cooldown_hours: float = Field(default=24.0, ge=0)
    """After how long the same action may be taken again."""
    limit: int = Field(default=3, ge=1)
    """Times that each action but `notify` may be taken within limit_days."""
    limit_days: float = Field(default=7.0, gt=0)
    """Time that `limit` is about, in days."""
    retrain_project: str = ""
    """MLflow Project that `retrain` runs: a folder, or a Git URI as for `mlflow run`."""
    retrain_entry_point: str = "main"
    """Its entry point."""
    retrain_parameters: dict[str, str] = {}
    """Its parameters, as monitor.action.retrain_parameters.NAME=VALUE."""
    retrain_env: Literal["local", "virtualenv", "conda", "uv"] = "local"
    """Where it runs: `local` is the environment of the monitor itself."""

    @field_validator("drift", "performance", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return listed(value)

    @model_validator(mode="after")
    def _check_project(self) -> ActionSpec:
        if "retrain" in (*self.drift, *self.performance) and not self.retrain_project:
            raise ValueError("the action retrain needs monitor.action.retrain_project")
        return self


class DriftMonitorSpec(BaseModel):
    """How the drift monitor compares a window."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    window: str = ""
    """Window of the drift monitor alone; unset = monitor.window."""
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest probability that a window without drift is reported as drifted."""
    min_distance: float = Field(default=0.08, gt=0, lt=1)
    """Smallest Jensen-Shannon distance of a column that counts."""
    min_share: float = Field(default=0.02, gt=0, lt=1)
    """Smallest change that counts in the share of missing, new or out-of-range values."""
    alert_share: float = Field(default=0.2, ge=0, le=1)
    """Share of drifted columns from which on the verdict is alert and not warning. Drifted predictions, and
    columns that vanish or change their type, are always an alert."""
    previous: bool = True
    """Also compare with the window before."""
    segment: str = ""
    """Column whose values are also compared one by one; unset = none."""

    @field_validator("window")
    @classmethod
    def _check_window(cls, value: str) -> str:
        return check_window(value) if value else value


class PerformanceMonitorSpec(BaseModel):
    """How the performance monitor judges a window."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    window: str = ""
    """Window of the performance monitor alone; unset = monitor.window."""
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest probability that an unchanged model is called worse."""
    tolerance: float = Field(default=0.02, ge=0, lt=1)
    """Smallest loss of a metric that counts, as a share of its reference value."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """Share of requests that may fail by the server's fault (status 500 and above) before there is an alert."""
    max_latency_ms: float = Field(default=0, ge=0)
    """Latency in milliseconds that 95 % of the requests must keep within; 0 = any."""

    @field_validator("window")
    @classmethod
    def _check_window(cls, value: str) -> str:
        return check_window(value) if value else value


class MonitorSpec(BaseModel):
    """The monitors of a revision; `-C monitor=none` attaches none, `-C monitor=drift` only that one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kinds: tuple[Literal["drift", "performance"], ...] = ("drift", "performance")
    """Monitors that are attached: drift, performance, both with a comma between, or none."""
    window: str = "1h"
    """What is judged at once: a time such as 30s, 15m, 1h or 1d, aligned to UTC, or a number of rows such
    as 5000rows."""
    grace_seconds: float | None = Field(default=None, ge=0)
    """How long after its end a window waits for rows that are written late; unset = a tenth of the window,
    from 2 to 60 seconds."""
    label_wait: str = "7d"
    """How long after its end a performance window is judged again when labels came."""
    min_rows: int = Field(default=200, ge=1)
    """Rows, or labelled rows, below which there is no verdict."""
    reference: str = ""
    """Parquet or CSV file, or a URI of MLflow's, with the rows that later ones are compared with; unset = the
    validation or training rows that the model's run logged."""
    reference_rows: int = Field(default=2000, ge=1)
    """Captured rows that become the reference of a version without a profile."""
    tracking_uri: str = ""
    """MLflow server that gets the results, as the monitor reaches it; unset = the one of the deployment."""
    evidently: Literal["auto", "always", "never"] = "auto"
    """When Evidently's report of a drift window is logged: auto = of windows with a warning or alert, where
    the extra `monitoring` is installed."""
    metrics_host: str = "127.0.0.1"
    """Address on which the monitor serves its Prometheus metrics."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of these metrics; unset = a free one that is kept."""
    drift: DriftMonitorSpec = DriftMonitorSpec()
    """The drift monitor."""
    performance: PerformanceMonitorSpec = PerformanceMonitorSpec()
    """The performance monitor."""
    alert: AlertSpec = AlertSpec()
    """Who is told."""
    action: ActionSpec = ActionSpec()
    """What is done."""

    @field_validator("kinds", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [] if value == "none" else listed(value)

    @field_validator("window")
    @classmethod
    def _check_window(cls, value: str) -> str:
        return check_window(value)

    @field_validator("label_wait")
    @classmethod
    def _check_wait(cls, value: str) -> str:
        duration_seconds(value)
        return value

    def window_of(self, kind: str) -> str:
        """The window of a monitor."""
        part = self.drift if kind == "drift" else self.performance
        return part.window or self.window

    def grace_of(self, kind: str) -> float:
        """Seconds that a window waits after its end."""
        if self.grace_seconds is not None:
            return self.grace_seconds
        window = self.window_of(kind)
        return 2.0 if window.endswith("rows") else min(60.0, max(2.0, duration_seconds(window) / 10))


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration_seconds(text: str) -> float:
    """Seconds of a duration such as 30s, 15m, 1h or 7d.

    Raises:
        ValueError: it is none, or is not longer than nothing.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match or not float(match[1]):
        raise ValueError(f"{text!r} is no duration such as 30s, 15m, 1h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def check_window(text: str) -> str:
    """Return `text` when it is a duration of at least a second, or a number of rows.

    Raises:
        ValueError: it is neither.
    """
    if re.fullmatch(r"[1-9][0-9]*rows", text):
        return text
    if duration_seconds(text) < 1:
        raise ValueError("a window takes at least 1s")
    return text
