"""The Dockerfiles, as templates: a runtime that many images share, and a model on top of it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mlflow_deploy.images import labels, layout
from mlflow_deploy.images.spec import ImageSpec

_SETTINGS_FOLDER = layout.SETTINGS.rpartition("/")[0]

_BUILD_STAGE = """\
FROM {base} AS build
LABEL {kind}=build {runtime_label}={digest}
COPY {prefix}install.py {prefix}requirements.txt {prefix}requirements.lock /build/
COPY {prefix}wheels /build/wheels
RUN ["python3", "/build/install.py", "{python}", "{trim}"]
"""

_RUNTIME_STAGE = """\
FROM {base} AS runtime
LABEL {kind}=runtime {runtime_label}={digest}
{system}COPY --from=build {root} {root}
{cuda}ENV PATH={venv}/bin:$PATH \\
    PYTHONUNBUFFERED=1 \\
    PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONSAFEPATH=1 \\
    HOME=/tmp \\
    USER=mlflow-deploy \\
    LOGNAME=mlflow-deploy \\
    {device_variable}={device}{gpu_environment}
WORKDIR /tmp
EXPOSE {port} {grpc_port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=120s --retries=3 \\
    CMD ["{venv}/bin/python", "-I", "-S", "{app}/mlflow_deploy/images/health.py"]
ENTRYPOINT ["{venv}/bin/python", "-m", "mlflow_deploy.images.start"]
"""

_APT = """\
RUN apt-get update \\
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {packages} \\
    && rm -rf /var/lib/apt/lists/*
"""

# The CUDA wheels put their libraries where only Python looks for them.
_CUDA = """\
RUN find {venv} {where} -type d > /etc/ld.so.conf.d/mlflow-deploy.conf && ldconfig
"""
_IN_CUDA = "-path '*/nvidia/*' -name lib"
_IN_TENSORRT = f"\\( {_IN_CUDA} -o -name tensorrt_libs \\)"

_GPU_ENVIRONMENT = """ \\
    NVIDIA_VISIBLE_DEVICES=all \\
    NVIDIA_DRIVER_CAPABILITIES=compute,utility"""

_PROVIDER_ENVIRONMENT = """ \\
    {variable}={provider}"""

# What differs between versions of a model comes last, so that they share all before it.
_MODEL_STAGE = """\
FROM {runtime}
COPY app {app}
RUN ["{python}", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "{app}"]
COPY settings.json {settings_folder}/
COPY bundle {bundle}
RUN ["{python}", "-m", "mlflow_deploy.images.sbom", "{bundle}", "{sbom}"]
USER {user}:0
LABEL {labels}
"""


def runtime_dockerfile(spec: ImageSpec, digest: str, *, prefix: str = "") -> str:
    """The Dockerfile of the shared runtime.

    Args:
        digest: the runtime's digest, by which a build's leftovers are found.
        prefix: folder of the runtime's files in the build context, with a '/' at its end.
    """
    gpu, tensorrt = spec.device == "gpu", spec.gpu_provider == "tensorrt"
    common = {
        "base": spec.base,
        "kind": labels.KIND,
        "runtime_label": labels.RUNTIME,
        "digest": digest,
    }
    build = _BUILD_STAGE.format(
        **common, prefix=prefix, python=spec.python_version, trim="trim" if spec.trim else "keep"
    )
    runtime = _RUNTIME_STAGE.format(
        **common,
        system=_APT.format(packages=" ".join(sorted(spec.system_packages))) if spec.system_packages else "",
        root=layout.ROOT,
        venv=layout.VENV,
        app=layout.APP,
        port=layout.PORT,
        grpc_port=layout.GRPC_PORT,
        cuda=_CUDA.format(venv=layout.VENV, where=_IN_TENSORRT if tensorrt else _IN_CUDA) if gpu else "",
        device_variable=layout.DEVICE_VARIABLE,
        device=spec.device,
        gpu_environment=_gpu_environment(spec),
    )
    return f"{build}\n{runtime}"


def _gpu_environment(spec: ImageSpec) -> str:
    """Further variables of a GPU runtime, as the continuation of an ENV instruction."""
    if spec.device != "gpu":
        return ""
    if spec.gpu_provider == "auto":
        return _GPU_ENVIRONMENT
    return _GPU_ENVIRONMENT + _PROVIDER_ENVIRONMENT.format(
        variable=layout.PROVIDER_VARIABLE, provider=spec.gpu_provider
    )


def model_dockerfile(spec: ImageSpec, runtime: str, image_labels: Mapping[str, str]) -> str:
    """The Dockerfile of a model's image.

    Args:
        runtime: image, or stage of the same Dockerfile, to build on.
        image_labels: labels of the image; any text is safe.
    """
    pairs = [f"{_quoted(key)}={_quoted(value)}" for key, value in sorted(image_labels.items())]
    return _MODEL_STAGE.format(
        runtime=runtime,
        python=layout.PYTHON,
        app=layout.APP,
        bundle=layout.BUNDLE,
        sbom=layout.SBOM,
        settings_folder=_SETTINGS_FOLDER,
        user=spec.user_id,
        labels=" \\\n    ".join(pairs),
    )


def _quoted(text: str) -> str:
    """A word of a Dockerfile that stands for exactly this text; control characters become spaces."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return json.dumps(plain, ensure_ascii=False).replace("$", "\\$")
