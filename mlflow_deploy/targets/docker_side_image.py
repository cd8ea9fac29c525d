"""Images that stand beside the revisions' own, such as the gateway's: from packages and our files to a name."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from mlflow_deploy.images.requirements import Wanted
from mlflow_deploy.images.spec import ImageSpec

Progress = Callable[[str], None]

USER = 10001

_BUILD = """\
FROM {base} AS build
LABEL {label}=build
COPY install.py requirements.txt requirements.lock /build/
COPY wheels /build/wheels
RUN ["python3", "/build/install.py", "{python}", "keep"]

FROM {base}
COPY --from=build {root} {root}
COPY app {app}
{own}\
LABEL {label}=image org.opencontainers.image.title="{title}" \\
    org.opencontainers.image.version="{version}"
"""


@dataclass(frozen=True, kw_only=True)
class SideImage:
    """What such an image is made of.

    Attributes:
        repository: its name without a tag.
        label: `image` on it, `build` on what its build makes on the way.
        whose: image it is, in words.
        packages: pip packages, each at the version that is installed here.
        files: of our package, which it gets.
        instructions: what its Dockerfile says of the last stage, up to the labels.
    """

    repository: str
    label: str
    whose: str
    packages: Sequence[str]
    files: Iterable[Path]
    instructions: str


def ensure_side_image(engine: Engine, image: SideImage, spec: ImageSpec, progress: Progress) -> str:
    """The name of such an image, which is built when the engine lacks it.

    Args:
        spec: how the deployment's images are built; base image and package indexes are taken from it.

    Raises:
        DeployError: it cannot be built; nothing half made is left on the engine.
    """
    spec = spec.model_copy(update={"device": "cpu"})
    wanted = Wanted(tuple(_pinned(name) for name in image.packages))
    lock = locks.lock_requirements(wanted, spec, progress)
    dockerfile = _BUILD.format(
        base=spec.base,
        label=image.label,
        python=spec.python_version,
        root=layout.ROOT,
        app=layout.APP,
        own=image.instructions,
        title=image.repository.replace("mlflow-deploy-", "mlflow_deploy "),
        version=mlflow_deploy.__version__,
    )
    package = Path(mlflow_deploy.__file__).parent
    files: dict[str, Path | bytes] = {
        f"app/mlflow_deploy/{path.relative_to(package).as_posix()}": path for path in image.files
    }
    files["install.py"] = package / "images" / "install.py"
    files |= {"Dockerfile": dockerfile.encode(), "requirements.lock": lock.text.encode()}
    name = f"{image.repository}:{files_digest(files)[7:19]}"
    if not _exists(engine, name, image.label):
        with build_lock(engine, name, name, progress):
            if not _exists(engine, name, image.label):
                ensure_base(engine, spec.base, spec.platform, progress, newer=False)
                progress(f"Building {image.whose} image {name}")
                _build(engine, name, image.label, files, lock, spec, progress)
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


def _pinned(package: str) -> str:
    """The package at the version that is installed here, when it is."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package
