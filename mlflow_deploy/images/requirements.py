"""Which packages an image needs: the servable's, the server's, and the builds of them for the device."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import BundleCorrupt, ConfigError
from mlflow_deploy.images.errors import PythonMismatch, RequirementRefused
from mlflow_deploy.images.spec import ImageSpec

_SERVER = ("granian", "msgspec", "nanoarrow", "numpy", "prometheus-client", "grpcio", "protobuf")
# MLflow's own bounds on what mlflow-skinny leaves out and its scoring code uses.
_SKINNY_LACKS = ("numpy<3", "pandas<4", "pyarrow>=4,<26")
_TORCH = {"torch", "torchvision", "torchaudio"}
_CPU_BUILDS = {
    "onnxruntime-gpu": "onnxruntime",
    "tensorflow": "tensorflow-cpu",
    "tensorflow-gpu": "tensorflow-cpu",
}
_TWINS = {"onnxruntime": "onnxruntime-gpu", "tensorflow-cpu": "tensorflow"}
"""Other builds of the same library, whose version counts where they are installed instead."""
_GPU_BUILDS = {
    "onnxruntime": "onnxruntime-gpu[cuda,cudnn]",
    "onnxruntime-gpu": "onnxruntime-gpu[cuda,cudnn]",
    "tensorflow": "tensorflow[and-cuda]",
    "tensorflow-cpu": "tensorflow[and-cuda]",
    "tensorflow-gpu": "tensorflow[and-cuda]",
    "xgboost-cpu": "xgboost",
}
# ONNX Runtime is linked against this major version, and installs its other libraries of CUDA 13 by itself.
_TENSORRT = "tensorrt-cu13-libs>=10,<11"


@dataclass(frozen=True)
class Wanted:
    """What pip is asked for.

    Attributes:
        lines: requirement lines, sorted.
        constraints: constraint lines, sorted.
        torch: a requirement names torch itself, so that the CPU index must be asked from the start.
    """

    lines: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    torch: bool = False


def wanted(bundle: Bundle, spec: ImageSpec) -> Wanted:
    """The requirements of the image of a bundle.

    A graph gets the very versions that are installed here, because the parity check ran with them. A pyfunc
    model gets its own requirements, and of the server what is missing in them.

    Raises:
        RequirementRefused: a requirement of the model is a URL, a path or an option of pip.
        PythonMismatch: the model was logged with another Python.
        ConfigError: a requirement cannot be read.
    """
    constraints: list[str] = []
    if bundle.manifest.format == "pyfunc":
        _check_python(bundle, spec)
        lines, constraints = _model_lines(bundle, spec)
        found = _by_name(_parse(lines))
        _add_mlflow(found, spec)
    else:
        given = list(bundle.manifest.servable.requirements) or ["onnxruntime"]
        lines = _read_lines(spec.requirements) if spec.requirements else given
        found = _by_name(_pinned(each) for each in _parse(lines))
    for name in _SERVER:
        # pip chooses a protobuf that fits the model's other packages.
        loose = bundle.manifest.format == "pyfunc" and name in ("protobuf", "numpy")
        found.setdefault(name, Requirement(name) if loose else _pinned(Requirement(name)))
    found.update(_by_name(_parse(spec.extra_requirements)))
    chosen = {str(_for_device(each, spec)) for each in found.values()}
    asked = spec.device == "gpu" and spec.gpu_provider == "tensorrt"
    if asked and not any(name.startswith("tensorrt") for name in found):
        chosen.add(_TENSORRT)
    return Wanted(tuple(sorted(chosen)), tuple(sorted(constraints)), torch=bool(found.keys() & _TORCH))


def _parse(lines: Iterable[str]) -> list[Requirement]:
    parsed = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise ConfigError(
                f"The requirement {line!r} cannot be read", why=str(error).splitlines()[0]
            ) from None
        if requirement.url:
            raise RequirementRefused(line, "it would be installed from an address, not from a package index")
        parsed.append(requirement)
    return parsed


def _by_name(requirements: Iterable[Requirement]) -> dict[str, Requirement]:
    return {canonicalize_name(each.name): each for each in requirements}


def _pinned(requirement: Requirement) -> Requirement:
    """The requirement at the version installed here, when that one meets it."""
    version = _installed(requirement.name) or _installed(_TWINS.get(requirement.name, requirement.name))
    if not version:
        return requirement
    if not requirement.specifier.contains(version, prereleases=True):
        return requirement
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return Requirement(f"{requirement.name}{extras}=={version}")


def _installed(name: str) -> str:
    """The version installed here, empty without one."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- what the model brings ---------------------------------------------------------------------------------


def _model_lines(bundle: Bundle, spec: ImageSpec) -> tuple[list[str], list[str]]:
    """(requirement lines, constraint lines) of a pyfunc model."""
    if spec.requirements:
        return _checked(_read_lines(spec.requirements), Path())
    folder = bundle.servable_path
    if (folder / "requirements.txt").is_file():
        return _checked(_read_lines(folder / "requirements.txt"), folder)
    if (folder / "conda.yaml").is_file():
        return _checked(_conda_lines(folder / "conda.yaml"), folder)
    return _checked(bundle.manifest.servable.requirements, folder)


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The requirements file {path} cannot be read", why=str(error)) from error
    text = re.sub(r"\\\r?\n", " ", text)
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _checked(lines: Iterable[str], folder: Path) -> tuple[list[str], list[str]]:
    """Split requirement lines from MLflow's constraints file; refuse what would reach elsewhere."""
    kept: list[str] = []
    constraints: list[str] = []
    for line in lines:
        option = re.fullmatch(r"(-c|--constraint)[ =]+(?P<file>[\w.-]+)", line)
        if option and (folder / option["file"]).is_file():
            constraints += _read_lines(folder / option["file"])
        elif line.startswith("-"):
            raise RequirementRefused(line, "options of pip come from your settings, never from the model")
        else:
            kept.append(line)
    for requirement in _parse(constraints):
        if requirement.extras:
            raise RequirementRefused(str(requirement), "a constraint cannot have extras")
    return kept, constraints


def _conda_lines(path: Path) -> list[str]:
    """The pip requirements in a conda.yaml; its other packages have no wheel that could be installed."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleCorrupt(path, f"conda.yaml cannot be read: {error}") from error
    lines: list[str] = []
    for entry in document.get("dependencies", []) if isinstance(document, dict) else []:
        if isinstance(entry, dict):
            lines += [str(line) for line in entry.get("pip", [])]
        elif not re.match(r"(python|pip|setuptools|wheel)\b", str(entry)):
            raise RequirementRefused(str(entry), "it is a conda package, and images install with pip")
    return lines


def _check_python(bundle: Bundle, spec: ImageSpec) -> None:
    """Refuse a model logged with another Python, unless the user says which to take."""
    import yaml

    path = bundle.servable_path / "python_env.yaml"
    if spec.python or not path.is_file():
        return
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    logged = str(document.get("python", "")) if isinstance(document, dict) else ""
    minor = ".".join(logged.split(".")[:2])
    if minor and minor != spec.python_version:
        raise PythonMismatch(minor, spec.python_version, "The model was logged with")


def _add_mlflow(found: dict[str, Requirement], spec: ImageSpec) -> None:
    """Have MLflow in the requirements, as mlflow-skinny when the user did not ask for all of it."""
    # The server's own code is copied into the image.
    found.pop("mlflow-deploy", None)
    full = found.get("mlflow")
    if full is None and "mlflow-skinny" not in found:
        full = _pinned(Requirement("mlflow-skinny"))
    if full is not None and (spec.mlflow == "skinny" or full.name == "mlflow-skinny"):
        found.pop("mlflow", None)
        found["mlflow-skinny"] = Requirement(f"mlflow-skinny{full.specifier}")
    if "mlflow-skinny" in found:
        for line in _SKINNY_LACKS:
            found.setdefault(Requirement(line).name, Requirement(line))


# --- the builds for the device -----------------------------------------------------------------------------


def _for_device(requirement: Requirement, spec: ImageSpec) -> Requirement:
    """The same requirement on the package, or the build of it, that runs on the device."""
    name = canonicalize_name(requirement.name)
    specifier = str(requirement.specifier)
    marker = f" ; {requirement.marker}" if requirement.marker else ""
    if spec.device == "gpu":
        # `2.13.0+cpu` is a build without CUDA; the plain version is the one with it.
        specifier = re.sub(r"\+cpu\b", "", specifier) if name in _TORCH else specifier
        if name in _GPU_BUILDS:
            return Requirement(f"{_GPU_BUILDS[name]}{specifier}{marker}")
    elif name in _CPU_BUILDS and (spec.machine == "x86_64" or name == "onnxruntime-gpu"):
        return Requirement(f"{_CPU_BUILDS[name]}{specifier}{marker}")
    elif name in _TORCH:
        specifier = re.sub(r"\+cu\d+\b", "", specifier)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return Requirement(f"{requirement.name}{extras}{specifier}{marker}")
