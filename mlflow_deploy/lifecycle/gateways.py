"""What stands in front of a deployment: chosen when it is made, and fixed for its life like its address."""

from __future__ import annotations

from mlflow_deploy.config import DeploymentSpec
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle.steps import Progress
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.base_records import DeploymentRecord
from mlflow_deploy.targets.replicas import check_gateway_settings


def choose_gateway(
    target: Target, name: str, spec: DeploymentSpec, progress: Progress
) -> tuple[DeploymentSpec, str]:
    """(the settings with gateway=auto decided, why that is no gateway or an empty string).

    Raises:
        ConfigError: a setting needs a gateway and the deployment gets none.
    """
    note = ""
    if spec.gateway == "auto":
        why = target.lacks_gateway()
        if spec.serving.grpc_port:
            why = "serving.grpc_port asks for a port of its own"
        note = f"It has no gateway, so an update may cost a client a retry: {why}" if why else ""
        if note:
            progress(note)
        spec = spec.model_copy(update={"gateway": "none" if why else "envoy"})
    try:
        check_gateway_settings(name, spec, spec.gateway)
    except ConfigError as error:
        raise ConfigError(error.what, why=error.why, hint=note or error.hint) from error
    return spec, note


def keep_address(record: DeploymentRecord, spec: DeploymentSpec) -> DeploymentSpec:
    """The settings of an update with gateway=auto as it was decided.

    Raises:
        ConfigError: they change what is fixed for a deployment's life, or need a gateway that it lacks.
    """
    if spec.gateway == "auto":
        spec = spec.model_copy(update={"gateway": record.gateway})
    wanted = (spec.host, spec.port, spec.gateway)
    if wanted != (record.host, spec.port and record.port, record.gateway):
        raise ConfigError(
            f"The address and the gateway of deployment {record.name!r} cannot be changed",
            why=f"they are {record.host}:{record.port} and gateway={record.gateway} for its whole life",
            hint="Delete the deployment and create it anew",
        )
    now = record.stable.settings.envoy
    for key in ("threads", "max_connections"):
        if getattr(spec.envoy, key) != getattr(now, key):
            raise ConfigError(
                f"envoy.{key} of deployment {record.name!r} cannot be changed",
                why=f"the gateway was started with {getattr(now, key)} and would have to be stopped",
                hint="Delete the deployment and create it anew",
            )
    check_gateway_settings(record.name, spec, record.gateway)
    return spec
