"""DeploymentSpec: what the user asks of a deployment, typed, from `-C key=value`, a mapping or YAML.

Unknown keys are refused by name with the nearest known one, and every error names the key the user typed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlflow_deploy.config_monitor import MonitorSpec, listed
from mlflow_deploy.errors import ConfigError, InvalidName, UnknownSetting
from mlflow_deploy.settings import CaptureSettings, ServingSettings

Format = Literal["auto", "onnx", "torchscript", "torch_export", "savedmodel", "tflite", "pmml", "pyfunc"]

Precision = Literal["fp32", "fp16", "int8", "auto"]

# Also a DNS label with room for a suffix such as "-r12", so that one name fits folder, container and Service.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?")
_SIZE = r"^([0-9]+[bkmg]?)?$"


class ParitySpec(BaseModel):
    """How far a converted model may differ from the native one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rtol: float | None = Field(default=None, ge=0)
    """Relative tolerance of numbers; unset = by precision."""
    atol: float | None = Field(default=None, ge=0)
    """Absolute tolerance of numbers; unset = by precision."""
    beyond: float | None = Field(default=None, ge=0, lt=1)
    """Share of rows whose numbers may be further off; unset = by precision."""
    agreement: float | None = Field(default=None, gt=0, le=1)
    """Share of rows whose label must be the same; unset = by precision."""
    data: str | None = None
    """Parquet or CSV file with validation rows; unset = the rows that the model's run logged."""

    @property
    def tolerances(self) -> dict[str, float | None]:
        """The tolerances by name, None where the precision decides."""
        return self.model_dump(include={"rtol", "atol", "beyond", "agreement"})


class AnalysisSpec(BaseModel):
    """When a candidate counts as worse than the stable revision during a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    alpha: float = Field(default=0.01, gt=0, lt=1)
    """Largest probability that a candidate with the stable error rate is rolled back for its errors."""
    min_requests: int = Field(default=100, ge=1)
    """Requests to the candidate below which an analysis is undecided, never passed."""
    max_error_increase: float = Field(default=0.01, ge=0, le=1)
    """Share of server errors that the candidate may have above the stable revision."""
    max_latency_ratio: float = Field(default=2.0, ge=0)
    """How many times the p95 of the stable revision the candidate's answers may take; 0 = any."""
    max_latency_ms: float = Field(default=0, ge=0)
    """Latency in milliseconds that 95 % of the candidate's answers must keep within; 0 = any."""
    max_answer_shift: float = Field(default=0.25, ge=0, le=1)
    """How far the distribution of the candidate's answers may lie from the stable revision's, as the largest
    difference of their shares up to any answer, 0 to 1; 0 = not compared."""
    max_disagreement: float = Field(default=0.01, ge=0, lt=1)
    """Share of rows that a shadow may answer differently than the stable revision."""
    shadow_rtol: float = Field(default=0.01, ge=0)
    """Relative difference from which on a number of a shadow's answer counts as different."""
    shadow_atol: float = Field(default=1e-6, ge=0)
    """Absolute difference that is allowed besides."""
    max_quality_drop: float = Field(default=0.02, ge=0, le=1)
    """Share of wrong answers that the candidate may have above the stable revision, where labels come."""
    quality_tolerance: float = Field(default=0.0, ge=0)
    """How far a number may lie from its label and still be right, relative to the label; 0 = not at all."""


class DockerSpec(BaseModel):
    """How target `docker` runs the containers of a revision."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cpus: float = Field(default=0, ge=0)
    """CPUs that each container may use; 0 = no limit."""
    memory: str = Field(default="", pattern=_SIZE)
    """Memory that each container may use, such as 512m or 2g; unset = no limit."""
    pids: int = Field(default=512, ge=16)
    """Processes and threads that each container may have."""
    tmp_size: str = Field(default="256m", pattern=_SIZE)
    """Size of /tmp, the only place where a container can write; it counts as memory."""
    user: str = Field(default="", pattern=r"^([0-9]+(:[0-9]+)?)?$")
    """User that the containers run as, as UID or UID:GID; unset = the image's own, which is not root."""
    env: dict[str, str] = {}
    """Environment variables of the containers, as docker.env.NAME=VALUE; `docker inspect` shows them."""
    network: str = ""
    """Network of the engine that the containers join besides the deployment's own, such as one with a proxy."""
    log_max_size: str = Field(default="10m", pattern=_SIZE)
    """Size at which the engine begins a new log file of a container."""
    log_max_files: int = Field(default=3, ge=1)
    """Log files that the engine keeps of each container."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What the model runs on; `gpu` needs an engine with the NVIDIA container toolkit."""
    gpus: str = Field(default="all", pattern=r"^(all|[1-9][0-9]*|[\w-]+(,[\w-]+)*)$")
    """GPUs of each container with device=gpu: all, how many, or their ids (GPU-...) separated by commas."""
    gpu_fallback: Literal["refuse", "cpu"] = "refuse"
    """What a container with device=gpu does without a GPU: refuse to start, or run on the CPU."""
    base_image: str = ""
    """Image to build on; unset = the setting base_image of images."""
    repository: str = ""
    """Repository of the image, with its registry; unset = mlflow-deploy/MODEL."""
    image: dict[str, str] = {}
    """Other settings of the image, as docker.image.KEY=VALUE; `mlflow-deploy image settings` lists them."""

    @field_validator("image")
    @classmethod
    def _refuse_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for key in ("index_url", "extra_index_urls", "http_proxy", "https_proxy"):
            if key in value:
                raise ValueError(
                    f"{key} may hold a password, which the deployment's record would show; set "
                    f"MLFLOW_DEPLOY_IMAGE_{key.upper()} in the environment instead"
                )
        return value


class EnvoySpec(BaseModel):
    """What the gateway does besides sharing the traffic; targets `local` and `docker`, gateway=envoy."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sticky: str = Field(default="", pattern=r"^((header|cookie):[A-Za-z0-9_.-]+)?$")
    """Keep requests with the same value on one revision and replica, as header:NAME or cookie:NAME; a client
    without the cookie gets one."""
    sticky_seconds: int = Field(default=0, ge=0)
    """Lifetime of the sticky cookie; 0 = until the browser is closed."""
    request_timeout_seconds: float | None = Field(default=None, ge=0)
    """How long a request may take, retries included, before it gets 504; 0 = no limit; unset = five seconds
    more than serving.deadline_seconds."""
    idle_timeout_seconds: float = Field(default=300.0, ge=0)
    """After how long an unused connection of a client is closed; 0 = never."""
    retry_predictions: bool = True
    """Ask another replica for a prediction when one breaks the connection before it answered."""
    rate_limit: int = Field(default=0, ge=0)
    """Requests other than GET and HEAD let through each second; more get 429; 0 = no limit."""
    max_requests: int = Field(default=1024, ge=1)
    """Requests at once in each revision; more get 503."""
    max_connections: int = Field(default=10_000, ge=1)
    """Connections of clients at once; more are closed. It cannot be changed later."""
    threads: int = Field(default=2, ge=1, le=256)
    """Threads of the gateway. It cannot be changed later."""
    access_log: bool = False
    """Write a JSON line for each request, with its revision, into the gateway's log."""


class DeploymentSpec(BaseModel):
    """What the user asks of a deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Format = "auto"
    """Servable to run: `auto` takes the fastest that passes the parity check, pyfunc last."""
    precision: Precision = "fp32"
    """Numbers that the servable computes with; `int8` and `fp16` are refused where they cannot work or fail the
    parity check, `auto` takes the fastest that passes it."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port to listen on; unset = a free one is picked and kept for the life of the deployment."""
    gateway: Literal["auto", "none", "envoy"] = "auto"
    """What stands in front of the revisions. `envoy` shares traffic and loses no request in an update; on
    target `local` it needs the extra `gateway`. `auto` = envoy where it can run. It cannot be changed later."""
    envoy: EnvoySpec = EnvoySpec()
    """Settings of the gateway."""
    replicas: int = Field(default=1, ge=1, le=100)
    """Processes or containers that each revision runs; more than one needs a gateway."""
    keep_revisions: int = Field(default=0, ge=0, le=20)
    """Former stable revisions that go on running without traffic, so that a rollback is instant and the header
    X-Revision reaches them; needs a gateway."""
    strategy: Literal["recreate", "rolling", "blue-green", "canary", "shadow"] = "recreate"
    """How an update moves the traffic; all but `recreate` need a gateway."""
    canary_steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (10, 50)
    """Shares of the traffic in percent that a canary gets one after the other, such as 10,50."""
    shadow_percent: int = Field(default=100, ge=1, le=100)
    """Share of the requests in percent that a shadow gets copies of."""
    step_seconds: float = Field(default=30.0, ge=0)
    """How long each step of a rollout lasts at least."""
    step_requests: int = Field(default=0, ge=0)
    """Requests that the candidate must have answered in each step before it goes on."""
    rollout_deadline_seconds: float = Field(default=3600.0, gt=0)
    """After which time a rollout that is not done is rolled back; a pause does not count as done."""
    analysis: AnalysisSpec = AnalysisSpec()
    """When a candidate counts as worse."""
    ready_seconds: float = Field(default=120.0, gt=0)
    """How long a revision may take to become ready."""
    parity: ParitySpec = ParitySpec()
    """Tolerances of the parity check."""
    serving: ServingSettings = ServingSettings()
    """Settings of the scoring server."""
    capture: CaptureSettings = CaptureSettings()
    """Which requests are kept for the monitors."""
    docker: DockerSpec = DockerSpec()
    """Settings of target `docker`; the other targets ignore them."""
    monitor: MonitorSpec = MonitorSpec()
    """The monitors of each revision."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_records(cls, value: Any) -> Any:
        """Earlier records have the number of replicas as docker.replicas."""
        docker = value.get("docker") if isinstance(value, Mapping) else None
        if not isinstance(docker, Mapping) or "replicas" not in docker:
            return value
        rest = {key: part for key, part in docker.items() if key != "replicas"}
        return {"replicas": docker["replicas"], **value, "docker": rest}

    @field_validator("capture", mode="before")
    @classmethod
    def _split_features(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            key: listed(part) if key in ("columns", "exclude", "hash") else part
            for key, part in value.items()
        }

    @field_validator("capture")
    @classmethod
    def _check_capture(cls, value: CaptureSettings) -> CaptureSettings:
        if refusal := value.refusal():
            raise ValueError(refusal)
        return value

    @property
    def captures(self) -> bool:
        """Whether requests are kept: monitors are attached, and nobody said no."""
        return self.capture.enabled and bool(self.monitor.kinds)

    @field_validator("canary_steps", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return listed(value)


def state_home() -> Path:
    """The state folder: `MLFLOW_DEPLOY_HOME`, or `mlflow-deploy` in the user's state directory."""
    if home := os.environ.get("MLFLOW_DEPLOY_HOME"):
        return Path(home).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "mlflow-deploy"


def check_name(name: str) -> str:
    """Return `name` when it can be a deployment's name.

    Raises:
        InvalidName: it has other characters than lower-case letters, digits and '-', or is too long.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(str(name))
    return name


def parse_spec(
    config: Mapping[str, Any] | None, *, flavor: str | None = None, base: DeploymentSpec | None = None
) -> DeploymentSpec:
    """Make a spec from config keys as MLflow hands them over.

    Args:
        config: keys with dots for nesting (`serving.workers`) or nested mappings; values may be strings.
        flavor: MLflow's `-f`; the same as `format=`.
        base: the spec in force, whose values hold for keys that `config` does not name (update).

    Raises:
        UnknownSetting: a key that no field has.
        ConfigError: a value of the wrong type or range.
    """
    given = _nest(config or {})
    if isinstance(given.get("monitor"), str):
        given["monitor"] = {"kinds": given["monitor"]}
    if flavor is not None:
        if "format" in given and given["format"] != flavor:
            raise ConfigError(
                f"Flavor {flavor!r} and format={given['format']!r} contradict each other",
                hint="Give one of them",
            )
        given["format"] = flavor
    _refuse_unknown(given, DeploymentSpec, "")
    if base is not None:
        given = _merged(base.model_dump(mode="json"), given)
    try:
        return DeploymentSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"Setting {key}={_shown(first['input'])} cannot be used",
            why=first["msg"].removeprefix("Value error, "),
            hint=_help_for(key),
        ) from None


def read_spec_file(path: Path) -> dict[str, Any]:
    """Read config keys from a YAML file.

    Raises:
        ConfigError: the file cannot be read or is not a mapping.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The config file {path} cannot be read", why=str(error)) from error
    if not isinstance(document, dict):
        raise ConfigError(f"The config file {path} is not a mapping of settings")
    return document


@dataclasses.dataclass(frozen=True)
class SettingDoc:
    """One row of the settings table: key, type, default and meaning."""

    key: str
    type: str
    default: str
    doc: str


def describe_settings() -> list[SettingDoc]:
    """All settings with their documentation, in the order of definition."""
    return list(_describe(DeploymentSpec, ""))


def _describe(model: type[BaseModel], prefix: str) -> Iterator[SettingDoc]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _describe(field.annotation, f"{prefix}{name}.")
        elif dataclasses.is_dataclass(field.annotation):
            for part in dataclasses.fields(field.annotation):
                kind = "list" if isinstance(part.default, tuple) else str(part.type)
                yield SettingDoc(
                    f"{prefix}{name}.{part.name}", kind, _shown(part.default), part.metadata["doc"]
                )
        else:
            yield SettingDoc(
                f"{prefix}{name}",
                _type_name(field.annotation),
                _shown(field.default),
                " ".join((field.description or "").split()),
            )


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is tuple:
        return "list"
    if get_origin(annotation) is dict:
        return "mapping"
    if args := [arg for arg in get_args(annotation) if arg is not type(None)]:
        return "|".join(arg if isinstance(arg, str) else arg.__name__ for arg in args)
    return str(annotation.__name__)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "unset" if value is None else str(value)


def _help_for(key: str) -> str:
    for row in describe_settings():
        if row.key == key:
            return f"{row.key}: {row.doc} (type {row.type}, default {row.default})"
    return ""


def _nest(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"a.b": 1}` into `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for key, value in config.items():
        *parents, last = str(key).split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"Setting {key!r} contradicts {parent}={place!r}", hint="Give one of them")
        value = _nest(value) if isinstance(value, Mapping) else value
        if isinstance(place.get(last), dict) and isinstance(value, dict):
            value = _merged(place[last], value)
        place[last] = value
    return nested


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _refuse_unknown(given: Mapping[str, Any], model: Any, prefix: str) -> None:
    parts: dict[str, Any]
    if dataclasses.is_dataclass(model):
        parts = {part.name: None for part in dataclasses.fields(model)}
    else:
        parts = {name: field.annotation for name, field in model.model_fields.items()}
    for key, value in given.items():
        if key not in parts:
            raise UnknownSetting(prefix + key, [row.key for row in describe_settings()])
        part = parts[key]
        nested = dataclasses.is_dataclass(part) or (isinstance(part, type) and issubclass(part, BaseModel))
        if nested and isinstance(value, Mapping):
            _refuse_unknown(value, part, f"{prefix}{key}.")
