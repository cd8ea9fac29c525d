"""ImageSpec: what the user asks of an image, from `-C key=value`, a YAML file and the environment."""

from __future__ import annotations

import os
import platform as machine
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from mlflow_deploy.errors import ConfigError, UnknownSetting

ENVIRONMENT = "MLFLOW_DEPLOY_IMAGE_"
"""Prefix of the variables that set a field for every build, such as MLFLOW_DEPLOY_IMAGE_BASE_IMAGE."""

_IMAGE = re.compile(r"[a-z0-9][\w.:/@-]*(\{python\})?[\w.:/@-]*")
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*")
_TAG = re.compile(r"[\w][\w.-]{0,127}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(=[\w.+:~-]+)?")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def _split(value: Any) -> Any:
    """`a,b` and `["a", "b"]` are the same list."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _words(value: Any) -> Any:
    """Words as a shell would split them."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """`a=1,b=2` and `{"a": "1", "b": "2"}` are the same mapping."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in _split(value)]
    return {key: text for key, _, text in pairs}


class ImageSpec(BaseModel):
    """What the user asks of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base_image: str = "python:{python}-slim"
    """Image to build on; needs Python with its venv module. `{python}` is replaced by the Python version."""
    python: str = Field(default="", pattern=r"^(3\.\d+)?$")
    """Python of the image, such as 3.11; unset = the one that runs this command, which the model must fit."""
    device: Literal["cpu", "gpu"] = "cpu"
    """`gpu` takes the CUDA builds of ONNX Runtime, torch and tensorflow, and refuses to start without a GPU."""
    gpu_provider: Literal["auto", "cuda", "tensorrt"] = "auto"
    """What runs ONNX models on a GPU; `tensorrt` adds its libraries, whose wheels are in NVIDIA's own index."""
    platform: str = Field(default="", pattern=r"^(linux/(amd64|arm64))?$")
    """Platform to build for: linux/amd64 or linux/arm64; unset = this machine's."""
    repository: str = ""
    """Repository of the image, with its registry; unset = mlflow-deploy/MODEL."""
    tag: str = ""
    """Tag of the image; unset = the model's version and the context's digest, so that no tag ever moves."""
    index_url: SecretStr | None = None
    """Package index; unset = pip's own settings. Used on this machine only, never seen by the build."""
    extra_index_urls: Annotated[tuple[SecretStr, ...], BeforeValidator(_split)] = ()
    """Further package indexes, separated by commas; unset = pip's own settings."""
    torch_index: str = "https://download.pytorch.org/whl/cpu"
    """Index with torch for CPUs only, asked when a CPU image needs torch; empty = the other indexes have it."""
    wheels: Path | None = None
    """Folder with wheels that pip may use beside the indexes."""
    ca_bundle: Path | None = None
    """CA certificates in PEM form for the package indexes; unset = pip's own settings."""
    pip_args: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Further options of pip, such as `--timeout 60 --retries 2`."""
    http_proxy: SecretStr | None = None
    """Proxy for http: of pip here, and of apt in the build when system_packages is set; never in a layer."""
    https_proxy: SecretStr | None = None
    """Proxy for https:, used as http_proxy is."""
    no_proxy: str = ""
    """Hosts that are reached without proxy, separated by commas."""
    requirements: Path | None = None
    """File with pip requirement lines that replace the model's own."""
    extra_requirements: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """Pip requirements to install besides the model's, separated by commas."""
    lock: Path | None = None
    """File with locked and hashed requirements to install as they are; nothing is resolved then."""
    mlflow: Literal["skinny", "full"] = "skinny"
    """`skinny` installs mlflow-skinny with pandas where a model asks for mlflow, which saves some 500 MB."""
    system_packages: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """Debian packages to add, separated by commas, such as libgomp1 for lightgbm; needs apt and a network."""
    trim: bool = True
    """Leave out tests and developer tools of well-known packages."""
    user_id: int = Field(default=10001, ge=1, le=2**31 - 2)
    """User that the container runs as; any other works too."""
    labels: Annotated[dict[str, str], BeforeValidator(_pairs)] = {}
    """Labels to add to the image, as `key=value` separated by commas."""
    source: str = ""
    """Address of the model's source code, for the label org.opencontainers.image.source."""

    @field_validator("base_image")
    @classmethod
    def _check_base(cls, value: str) -> str:
        if not _IMAGE.fullmatch(value):
            raise ValueError("it is not the name of an image")
        return value

    @field_validator("repository")
    @classmethod
    def _check_repository(cls, value: str) -> str:
        if value and not _REPOSITORY.fullmatch(value):
            raise ValueError("a repository is lower-case words with '/' between them, and no tag")
        return value

    @field_validator("tag")
    @classmethod
    def _check_tag(cls, value: str) -> str:
        if value and not _TAG.fullmatch(value):
            raise ValueError("a tag has letters, digits, '_', '.' and '-', at most 128")
        return value

    @field_validator("system_packages")
    @classmethod
    def _check_packages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _PACKAGE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a Debian package")
        return value

    @field_validator("wheels", "ca_bundle", "requirements", "lock")
    @classmethod
    def _check_path(cls, value: Path | None) -> Path | None:
        if value is not None and not value.expanduser().exists():
            raise ValueError(f"{value} does not exist")
        return value.expanduser().absolute() if value is not None else None

    @model_validator(mode="after")
    def _check_provider(self) -> ImageSpec:
        if self.gpu_provider != "auto" and self.device != "gpu":
            raise ValueError(f"gpu_provider={self.gpu_provider} goes with device=gpu only")
        return self

    @property
    def python_version(self) -> str:
        """Python of the image as `major.minor`."""
        return self.python or f"{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def base(self) -> str:
        """The base image's name."""
        return self.base_image.replace("{python}", self.python_version)

    @property
    def machine(self) -> str:
        """The processor's name as Python has it: x86_64 or aarch64."""
        return _MACHINES[self.platform.partition("/")[2]] if self.platform else machine.machine()


def parse_image_spec(
    config: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None
) -> ImageSpec:
    """Make a spec from keys that the user gave, over those in the environment.

    Raises:
        UnknownSetting: a key that no field has.
        ConfigError: a value that cannot be used.
    """
    known = ImageSpec.model_fields
    given: dict[str, Any] = {}
    for variable, value in (os.environ if environment is None else environment).items():
        if variable.startswith(ENVIRONMENT):
            given[variable.removeprefix(ENVIRONMENT).lower()] = value
    given.update(config or {})
    for key in given:
        if key not in known:
            raise UnknownSetting(key, known, command="mlflow-deploy image settings")
    try:
        return ImageSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise ConfigError(
                "The image settings contradict each other", why=first["msg"].removeprefix("Value error, ")
            ) from None
        key = str(first["loc"][0])
        # The value itself may hold a password.
        shown = "..." if "SecretStr" in str(known[key].annotation) else first["input"]
        raise ConfigError(
            f"Image setting {key}={shown} cannot be used",
            why=first["msg"].removeprefix("Value error, "),
            hint=f"{key}: {known[key].description}",
        ) from None
