"""Build contexts: the files that an image is made from, deterministic, with a digest that names the image."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import mlflow_deploy
from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.files import sha256_file
from mlflow_deploy.images import labels
from mlflow_deploy.images import lock as locks
from mlflow_deploy.images.app import app_files
from mlflow_deploy.images.dockerfile import model_dockerfile, runtime_dockerfile
from mlflow_deploy.images.errors import OutputNotEmpty
from mlflow_deploy.images.lock import Lock
from mlflow_deploy.images.requirements import wanted
from mlflow_deploy.images.spec import ImageSpec

Progress = Callable[[str], None]
Files = Mapping[str, Path | bytes]
"""Content by path in the build context."""

RUNTIME_REPOSITORY = "mlflow-deploy-runtime"
# Zip and pip refuse times before 1980.
_EPOCH = 315532800


@dataclass(frozen=True)
class ImagePlan:
    """What an image will be made from.

    Attributes:
        name: `repository:tag` of the image.
        runtime: `repository:tag` of the shared runtime below it.
        digest: `sha256-<hex>` of the model's context.
        runtime_digest: `sha256-<hex>` of the runtime's context.
        files: the model's context without its Dockerfile.
        labels: labels of the image.
    """

    name: str
    runtime: str
    digest: str
    runtime_digest: str
    files: Files
    labels: Mapping[str, str]
    spec: ImageSpec
    lock: Lock


def plan_image(bundle: Bundle, spec: ImageSpec, progress: Progress, *, refresh: bool = False) -> ImagePlan:
    """Decide what the image of a bundle is made from; the same bundle and spec give the same plan.

    Args:
        refresh: resolve the requirements again.

    Raises:
        DeployError: the requirements cannot be read or resolved.
    """
    lock = locks.lock_requirements(wanted(bundle, spec), spec, progress, refresh=refresh)
    runtime_digest = _runtime_digest(spec, lock)
    runtime = f"{RUNTIME_REPOSITORY}:{runtime_digest[7:23]}"
    files: dict[str, Path | bytes] = {"settings.json": _settings(bundle)}
    for name, content in app_files(pyfunc=bundle.manifest.format == "pyfunc").items():
        files[f"app/{name}"] = content
    for name in ("bundle.json", *bundle.manifest.files):
        files[f"bundle/{name}"] = bundle.path / name
    own = _labels(bundle, spec, lock, runtime_digest)
    digest = files_digest({**files, "Dockerfile": model_dockerfile(spec, runtime, own).encode()})
    own[labels.CONTEXT] = digest
    name = f"{spec.repository or _repository(bundle)}:{spec.tag or _tag(bundle, digest)}"
    return ImagePlan(name, runtime, digest, runtime_digest, files, own, spec, lock)


def model_files(plan: ImagePlan) -> Files:
    """The context of the model's image on top of the runtime's image."""
    return {**plan.files, "Dockerfile": model_dockerfile(plan.spec, plan.runtime, plan.labels).encode()}


def runtime_files(plan: ImagePlan, work: Path, progress: Progress, *, prefix: str = "") -> Files:
    """The context of the runtime, with its packages fetched into the folder `work`.

    Raises:
        RequirementsUnresolved: a locked package is gone.
        IndexUnreachable: an index does not answer.
    """
    wheels = work / "wheels"
    requirements = locks.fetch(plan.lock, wheels, plan.spec, progress)
    files: dict[str, Path | bytes] = {
        "Dockerfile": runtime_dockerfile(plan.spec, plan.runtime_digest).encode(),
        f"{prefix}install.py": Path(__file__).with_name("install.py"),
        f"{prefix}requirements.txt": requirements.encode(),
        f"{prefix}requirements.lock": plan.lock.text.encode(),
    }
    for wheel in sorted(wheels.iterdir()):
        files[f"{prefix}wheels/{wheel.name}"] = wheel
    return files


def write_context(plan: ImagePlan, output: Path, progress: Progress) -> None:
    """Write one context with one Dockerfile that builds runtime and model, for those who build elsewhere.

    Raises:
        OutputNotEmpty: the folder holds something.
        StateWriteFailed: the folder cannot be written; nothing is left behind.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputNotEmpty(str(output))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".mlflow-deploy-") as work:
            staging = Path(work) / "context"
            files = {**runtime_files(plan, Path(work), progress, prefix="runtime/"), **plan.files}
            files["Dockerfile"] = (
                f"# {plan.name}; build with: docker build -t {plan.name} .\n"
                f"{runtime_dockerfile(plan.spec, plan.runtime_digest, prefix='runtime/')}\n"
                f"{model_dockerfile(plan.spec, 'runtime', plan.labels)}"
            ).encode()
            progress(f"Writing the build context to {output}")
            for name, content in files.items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    shutil.copyfile(content, path)
            staging.rename(output)
    except OSError as error:
        raise StateWriteFailed(output, error.strerror or str(error)) from error


def write_tar(files: Files, file: IO[bytes]) -> None:
    """Write a context as a tar archive: sorted, owned by root, readable by all, without times."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            content = files[name]
            member = tarfile.TarInfo(name)
            member.mode, member.mtime = 0o644, _EPOCH
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.size = content.stat().st_size
                with content.open("rb") as source:
                    archive.addfile(member, source)


def files_digest(files: Files) -> str:
    """`sha256-<hex>` over the names and contents of a context."""
    lines = []
    for name in sorted(files):
        content = files[name]
        digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_file(content)
        lines.append(f"{digest}  {name}\n")
    return "sha256-" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _runtime_digest(spec: ImageSpec, lock: Lock) -> str:
    """What the runtime is made from, wheels by their locked hashes."""
    script = Path(__file__).with_name("install.py").read_bytes()
    parts = [runtime_dockerfile(spec, "").encode(), script, lock.text.encode(), spec.machine.encode()]
    return "sha256-" + hashlib.sha256(b"\0".join(parts)).hexdigest()


def _settings(bundle: Bundle) -> bytes:
    """The settings file of an image that is run by hand."""
    return json.dumps({"deployment": _slug(bundle.manifest.model.name)}).encode() + b"\n"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _repository(bundle: Bundle) -> str:
    return f"mlflow-deploy/{_slug(bundle.manifest.model.name)}"


def _tag(bundle: Bundle, digest: str) -> str:
    version = re.sub(r"[^\w.-]", "-", bundle.manifest.model.version)
    return f"{version}-{digest[7:19]}" if version else digest[7:19]


def _labels(bundle: Bundle, spec: ImageSpec, lock: Lock, runtime_digest: str) -> dict[str, str]:
    model = bundle.manifest.model
    opencontainers = {
        "title": model.name or _slug(model.name),
        "description": f"MLflow model {model.uri} served by mlflow_deploy",
        "version": model.version,
        "revision": model.run_id,
        "source": spec.source,
        "base.name": spec.base,
    }
    own = {
        labels.KIND: "model",
        labels.BUNDLE: bundle.digest,
        labels.RUNTIME: runtime_digest,
        labels.LOCK: lock.digest,
        labels.DEVICE: spec.device,
        labels.FORMAT: bundle.manifest.format,
        labels.MODEL_URI: model.uri,
        labels.MODEL_NAME: model.name,
        labels.MODEL_VERSION: model.version,
        labels.MODEL_ID: model.model_id,
        labels.MODEL_DIGEST: model.digest,
        labels.RUN_ID: model.run_id,
        labels.VERSION: mlflow_deploy.__version__,
    }
    image = {f"org.opencontainers.image.{key}": value for key, value in opencontainers.items() if value}
    return {**spec.labels, **image, **own}
