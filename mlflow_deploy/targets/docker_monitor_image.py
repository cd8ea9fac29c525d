"""The monitor's image: the packages that judge windows and reach MLflow, and the files of ours that do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow_deploy
from mlflow_deploy.images import layout
from mlflow_deploy.images.engine import Engine
from mlflow_deploy.images.labels import PREFIX
from mlflow_deploy.images.spec import ImageSpec
from mlflow_deploy.targets.base_monitor import JOB
from mlflow_deploy.targets.docker_files import DATA
from mlflow_deploy.targets.docker_side_image import USER, SideImage, ensure_side_image

Progress = Callable[[str], None]

REPOSITORY = "mlflow-deploy-monitor"
LABEL = PREFIX + "monitor"
"""`image` on the monitor's image, `build` on what its build makes on the way."""
PORT = 9464
"""Where the monitor serves its Prometheus metrics inside its container."""
_PACKAGES = ("mlflow-skinny", "msgspec", "numpy", "prometheus-client", "pyarrow", "pydantic", "pyyaml")
_EVIDENTLY = ("evidently", "pandas")
_PARTS = (
    "__init__",
    "bundle",
    "config",
    "config_monitor",
    "errors",
    "files",
    "processes",
    "reachable",
    "settings",
)
_TARGETS = ("__init__", "base", "base_monitor", "base_records")

_INSTRUCTIONS = f"""\
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 HOME=/tmp MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
USER {USER}:0
WORKDIR /tmp
EXPOSE {PORT}
STOPSIGNAL SIGTERM
ENTRYPOINT ["{layout.PYTHON}", "-m", "{JOB}"]
CMD ["watch", "{DATA}"]
"""


def ensure_monitor_image(
    engine: Engine, spec: ImageSpec, progress: Progress, *, evidently: bool, storage: Sequence[str] = ()
) -> str:
    """The name of the monitor's image, which is built when the engine lacks it.

    Args:
        spec: how the deployment's images are built; base image and package indexes are taken from it.
        evidently: with Evidently and what it needs, half a gigabyte more.
        storage: packages by which it reaches shared storage.

    Raises:
        DeployError: it cannot be built; nothing half made is left on the engine.
    """
    image = SideImage(
        repository=REPOSITORY,
        label=LABEL,
        whose="the monitor's",
        packages=(*_PACKAGES, *(_EVIDENTLY if evidently else ()), *storage),
        files=_own_files(),
        instructions=_INSTRUCTIONS,
    )
    return ensure_side_image(engine, image, spec, progress)


def _own_files() -> list[Path]:
    package = Path(mlflow_deploy.__file__).parent
    return [
        *(package / f"{part}.py" for part in _PARTS),
        *(package / "targets" / f"{part}.py" for part in _TARGETS),
        *sorted((package / "gateway").glob("*.py")),
        *sorted((package / "monitoring").glob("*.py")),
    ]
