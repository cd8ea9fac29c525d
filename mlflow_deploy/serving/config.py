"""What one server process was told: settings file, bundle, and who it serves for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from mlflow_deploy.errors import ConfigError, UnknownSetting
from mlflow_deploy.settings import CaptureSettings, ServingSettings

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings file's content.

    Attributes:
        deployment: name of the deployment, which is also the model's name in the Open Inference Protocol.
        revision: number of the revision.
        serving: how the server runs.
        control: secret of the deployment's own commands; empty = they cannot ask this server for anything.
        data: the deployment's data folder; empty = nothing is captured, and no label is taken.
        capture: which requests are kept there.
    """

    deployment: str = ""
    revision: int = 0
    serving: ServingSettings = dataclasses.field(default_factory=ServingSettings)
    control: str = ""
    data: str = ""
    capture: CaptureSettings = dataclasses.field(default_factory=CaptureSettings)


def read_config(path: Path | None) -> ServerConfig:
    """Read the settings file, or take the defaults when `path` is None.

    Raises:
        ConfigError: the file cannot be read, or a value cannot be used.
        UnknownSetting: a key that no setting has.
    """
    if path is None:
        return ServerConfig()
    try:
        document = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"The settings file {path} cannot be read", why=str(error)) from error
    return parse_config(document)


def parse_config(document: Any) -> ServerConfig:
    """The configuration in a parsed settings file; same errors as `read_config`."""
    groups: dict[str, type[Any]] = {"serving": ServingSettings, "capture": CaptureSettings}
    if not isinstance(document, dict) or not all(isinstance(document.get(key, {}), dict) for key in groups):
        raise ConfigError(
            "The settings file must hold a JSON object, and `serving` and `capture` in it others"
        )
    _refuse_unknown(document, ServerConfig)
    for key, group in groups.items():
        _refuse_unknown(document.get(key, {}), group)
    try:
        config = msgspec.convert(document, ServerConfig)
    except msgspec.ValidationError as error:
        raise ConfigError("The settings file has a value that cannot be used", why=str(error)) from error
    _check(config.serving)
    if refusal := config.capture.refusal():
        raise ConfigError("The settings file has a value that cannot be used", why=refusal)
    return config


def _refuse_unknown(document: dict[str, Any], into: type[Any]) -> None:
    known = {field.name for field in dataclasses.fields(into)}
    for key in document:
        if key not in known:
            raise UnknownSetting(key, known)


def _check(serving: ServingSettings) -> None:
    """Refuse values that would only fail later, or worse, be taken silently."""
    at_least = {
        "workers": 1, "threads": 0, "intra_op_threads": 0, "max_concurrency": 0, "queue_size": 0,
        "deadline_seconds": 0, "max_batch_size": 1, "max_batch_delay_ms": 0, "max_body_bytes": 1,
        "max_rows": 1, "drain_seconds": 0, "drain_delay_seconds": 0, "access_log": 0, "grpc_port": 0,
        "trace_share": 0,
    }  # fmt: skip
    for name, least in at_least.items():
        if not getattr(serving, name) >= least:
            raise ConfigError(
                f"serving.{name} must be at least {least}", why=f"it is {getattr(serving, name)}"
            )
    choices = {
        "log_level": LOG_LEVELS,
        "log_format": ("json", "text"),
        "auth": ("none", "token"),
        "device": ("auto", "cpu", "gpu"),
        "gpu_fallback": ("refuse", "cpu"),
        "gpu_provider": ("auto", "cuda", "tensorrt"),
    }
    for name, words in choices.items():
        if getattr(serving, name) not in words:
            raise ConfigError(
                f"serving.{name} cannot be {getattr(serving, name)!r}", hint=f"Use one of {', '.join(words)}"
            )
    for name in ("access_log", "trace_share"):
        if getattr(serving, name) > 1:
            raise ConfigError(
                f"serving.{name} is a share between 0 and 1", why=f"it is {getattr(serving, name)}"
            )
    if serving.otlp_endpoint and not serving.otlp_endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"serving.otlp_endpoint cannot be {serving.otlp_endpoint!r}", hint="Give a URL of http or https"
        )
    if serving.auth == "token" and not serving.auth_file:
        raise ConfigError("serving.auth=token needs serving.auth_file", hint="Name the file with the tokens")
    if bool(serving.tls_cert) != bool(serving.tls_key):
        raise ConfigError("serving.tls_cert and serving.tls_key go together", hint="Give both or none")
    if serving.tls_client_ca and not serving.tls_cert:
        raise ConfigError("serving.tls_client_ca needs serving.tls_cert and serving.tls_key")
