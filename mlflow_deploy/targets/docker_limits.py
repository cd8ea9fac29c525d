"""What containers may do and take: no rights, a read-only root, bounds on all resources."""

from __future__ import annotations

from typing import Any

from mlflow_deploy.config import DockerSpec


def hardened(spec: DockerSpec) -> dict[str, Any]:
    """Host settings of every container: no rights, nothing to write but /tmp, bounded in all it takes."""
    from docker.types import LogConfig

    host: dict[str, Any] = {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": {"/tmp": f"mode=1777,size={spec.tmp_size}" if spec.tmp_size else "mode=1777"},  # noqa: S108
        "restart_policy": {"Name": "unless-stopped"},
        "pids_limit": spec.pids,
        "log_config": LogConfig(
            type=LogConfig.types.JSON,
            config={"max-size": spec.log_max_size, "max-file": str(spec.log_max_files)},
        ),
    }
    return host


def limits(spec: DockerSpec, *, gpu: bool) -> dict[str, Any]:
    """Host settings of a revision's container: CPUs, memory and GPUs as far as the user gave them."""
    from docker.types import DeviceRequest

    found: dict[str, Any] = {}
    if spec.cpus:
        found["nano_cpus"] = round(spec.cpus * 1e9)
    if spec.memory:
        # The same for memory and swap: a model that swaps is slower than one that is restarted.
        found |= {"mem_limit": spec.memory, "memswap_limit": spec.memory}
    if gpu:
        which: dict[str, Any] = {"device_ids": spec.gpus.split(",")}
        if spec.gpus == "all" or spec.gpus.isdigit():
            which = {"count": -1 if spec.gpus == "all" else int(spec.gpus)}
        found["device_requests"] = [DeviceRequest(capabilities=[["gpu"]], **which)]
    return found
