"""The monitor's image: the packages that judge windows and reach MLflow, and the files of ours that do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow_deploy
from mlflow_deploy.images import layout
from mlflow_deploy.images import lock as locks
from mlflow_deploy.images.context import files_digest
from mlflow_deploy.images.engine import Engine
from mlflow_deploy.images.labels import PREFIX
from mlflow_deploy.images.requirements import Wanted
from mlflow_deploy.images.spec import ImageSpec
from mlflow_deploy.targets.base_monitor import JOB
from mlflow_deploy.targets.docker_files import DATA
from mlflow_deploy.targets.docker_gateway_image import ensure_built, pinned

Progress = Callable[[str], None]

REPOSITORY = "mlflow-deploy-monitor"
LABEL = PREFIX + "monitor"
"""`image` on the monitor's image, `build` on what its build makes on the way."""
USER = 10001
PORT = 9464
"""Where the monitor serves its Prometheus metrics inside its container."""
_PACKAGES = ("mlflow-skinny", "msgspec", "numpy", "prometheus-client", "pyarrow", "pydantic", "pyyaml")
_EVIDENTLY = ("evidently", "pandas")
_PARTS = ("__init__", "bundle", "config", "config_monitor", "errors", "files", "settings")
_TARGETS = ("__init__", "base", "base_monitor")

_DOCKERFILE = """\
FROM {base} AS build
LABEL {label}=build
COPY install.py requirements.txt requirements.lock /build/
COPY wheels /build/wheels
RUN ["python3", "/build/install.py", "{python}", "keep"]

FROM {base}
COPY --from=build {root} {root}
COPY app {app}
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 HOME=/tmp MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
USER {user}:0
WORKDIR /tmp
EXPOSE {port}
STOPSIGNAL SIGTERM
ENTRYPOINT ["{venv_python}", "-m", "{job}"]
CMD ["watch", "{data}"]
LABEL {label}=image org.opencontainers.image.title="mlflow_deploy monitor" \\
    org.opencontainers.image.version="{version}"
"""


def ensure_monitor_image(engine: Engine, spec: ImageSpec, progress: Progress, *, evidently: bool) -> str:
    """The name of the monitor's image, which is built when the engine lacks it.

    Args:
        spec: how the deployment's images are built; base image and package indexes are taken from it.
        evidently: with Evidently and what it needs, half a gigabyte more.

    Raises:
        DeployError: it cannot be built; nothing half made is left on the engine.
    """
    spec = spec.model_copy(update={"device": "cpu"})
    packages = (*_PACKAGES, *(_EVIDENTLY if evidently else ()))
    lock = locks.lock_requirements(Wanted(tuple(pinned(name) for name in packages)), spec, progress)
    dockerfile = _DOCKERFILE.format(
        base=spec.base,
        label=LABEL,
        python=spec.python_version,
        root=layout.ROOT,
        app=layout.APP,
        venv_python=layout.PYTHON,
        user=USER,
        port=PORT,
        job=JOB,
        data=DATA,
        version=mlflow_deploy.__version__,
    )
    files = {**_own_files(), "Dockerfile": dockerfile.encode(), "requirements.lock": lock.text.encode()}
    name = f"{REPOSITORY}:{files_digest(files)[7:19]}"
    return ensure_built(engine, name, LABEL, "the monitor's", files, lock, spec, progress)


def _own_files() -> dict[str, Path | bytes]:
    package = Path(mlflow_deploy.__file__).parent
    paths = [
        *(package / f"{part}.py" for part in _PARTS),
        *(package / "targets" / f"{part}.py" for part in _TARGETS),
        *sorted((package / "gateway").glob("*.py")),
        *sorted((package / "monitoring").glob("*.py")),
    ]
    files: dict[str, Path | bytes] = {
        f"app/mlflow_deploy/{path.relative_to(package).as_posix()}": path for path in paths
    }
    files["install.py"] = package / "images" / "install.py"
    return files
