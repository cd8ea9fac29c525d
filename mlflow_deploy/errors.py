"""Every error a user can meet, drawn as one tree.

One class per thing a user can do about it. A message says what happened, why, and what to do. This module
imports nothing heavy, because the scoring server raises from it too; `plugin` turns these errors into
`MlflowException`s at MLflow's door.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

_FEW = 12  # names that a message can list


class DeployError(Exception):
    """Base of all errors of mlflow_deploy.

    Attributes:
        code: stable identifier for scripts; never reworded.
        mlflow_code: name of the matching MLflow `ErrorCode`.
        exit_status: process exit status when a command ends with this error.
        what: what happened.
        why: the cause, when known.
        hint: what the user can do.
    """

    code: ClassVar[str] = "DEPLOY_ERROR"
    mlflow_code: ClassVar[str] = "INTERNAL_ERROR"
    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        self.what, self.why, self.hint = what, why, hint
        said = ": ".join(part.rstrip(". ") for part in (what, why) if part)
        ends = [text if text.endswith("?") else f"{text}." for text in (said, hint.rstrip(". ")) if text]
        super().__init__(" ".join(ends))

    @property
    def text(self) -> str:
        """The whole message on one line."""
        return " ".join(str(self.args[0]).split())


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the known word nearest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else ""


# --- what the user asked for -------------------------------------------------------------------------------


class ConfigError(DeployError):
    """A setting is unknown or has a value that cannot be used."""

    code = "CONFIG_INVALID"
    mlflow_code = "INVALID_PARAMETER_VALUE"
    exit_status = 2


class UnknownSetting(ConfigError):
    """A config key that no field has."""

    code = "CONFIG_UNKNOWN_KEY"

    def __init__(self, key: str, known: Iterable[str], *, command: str = "mlflow-deploy settings") -> None:
        known = sorted(known)
        # Settings move between groups: the same name elsewhere is the likeliest.
        guess = nearest(key.rpartition(".")[2] if key.rpartition(".")[2] in known else key, known)
        few = len(known) <= _FEW
        super().__init__(
            f"Unknown setting {key!r}" + (f": {guess}" if guess else ""),
            hint=f"Known settings: {', '.join(known)}" if few else f"`{command}` lists them all",
        )
        self.key = key


class InvalidName(ConfigError):
    """A deployment name that cannot be used as folder, container and DNS name."""

    code = "NAME_INVALID"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} cannot be a deployment name",
            hint="Use 1 to 53 lower-case letters, digits and '-', beginning and ending with a letter or digit",
        )


class MissingExtra(DeployError):
    """An optional library is not installed."""

    code = "EXTRA_MISSING"
    mlflow_code = "BAD_REQUEST"

    def __init__(self, what: str, extra: str, *, missing: str = "") -> None:
        super().__init__(
            f"{what} is not available",
            why=f"the package {missing!r} is not installed" if missing else "an optional package is missing",
            hint=f'Install it with: pip install "mlflow-deploy[{extra}]"',
        )
        self.extra = extra


# --- models ------------------------------------------------------------------------------------------------


class ModelError(DeployError):
    """The model cannot be found, fetched or read."""

    code = "MODEL_ERROR"
    mlflow_code = "BAD_REQUEST"


class ModelNotFound(ModelError):
    """No model has this URI."""

    code = "MODEL_NOT_FOUND"
    mlflow_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self, uri: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(
            f"There is no model {uri!r}",
            why=why,
            hint=hint or "Check the name and the version, stage or alias in the MLflow UI",
        )


class ModelCorrupt(ModelError):
    """The model folder is not a readable MLflow model."""

    code = "MODEL_CORRUPT"

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(
            f"The model {uri!r} cannot be read", why=why, hint="Log the model again; nothing was deployed"
        )


class RegistryUnreachable(ModelError):
    """The MLflow tracking server or registry does not answer."""

    code = "REGISTRY_UNREACHABLE"
    mlflow_code = "TEMPORARILY_UNAVAILABLE"

    def __init__(self, tracking_uri: str, why: str) -> None:
        super().__init__(
            f"The MLflow server at {tracking_uri} does not answer",
            why=why,
            hint="Start it, or set MLFLOW_TRACKING_URI to the right address; nothing was changed",
        )


class Quarantined(ModelError):
    """The model version is in quarantine."""

    code = "MODEL_QUARANTINED"
    mlflow_code = "INVALID_STATE"

    def __init__(self, model: str, version: str, reason: str, by: str = "") -> None:
        super().__init__(
            f"Version {version} of {model!r} is in quarantine" + (f", put there by {by}" if by else ""),
            why=reason,
            hint=f"Take another version, or lift it with `mlflow-deploy quarantine {model} {version} --lift`",
        )


class RegistryRefused(ModelError):
    """The registry does not let something be changed."""

    code = "REGISTRY_REFUSED"
    mlflow_code = "PERMISSION_DENIED"

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"MLflow did not change {what}",
            why=why,
            hint="Ask who runs the MLflow server for the right to change it, if that is the cause",
        )


# --- conversion --------------------------------------------------------------------------------------------


class ConversionError(DeployError):
    """A model cannot be brought into the wanted form."""

    code = "CONVERSION_FAILED"
    mlflow_code = "BAD_REQUEST"


class UnsupportedConversion(ConversionError):
    """No converter leads from this model to the wanted form."""

    code = "CONVERSION_UNSUPPORTED"

    def __init__(self, what: str, format: str, why: str, hint: str = "") -> None:
        super().__init__(
            f"{what} cannot be converted to {format}",
            why=why,
            hint=hint or "Use format=pyfunc, or format=auto to let mlflow_deploy choose",
        )


class ParityFailed(ConversionError):
    """The converted model answers differently from the native one."""

    code = "PARITY_FAILED"

    def __init__(self, format: str, why: str) -> None:
        super().__init__(
            f"The {format} form of this model does not answer like the native model",
            why=why,
            hint="Use format=pyfunc, or format=auto to fall back to it by itself",
        )


# --- bundles -----------------------------------------------------------------------------------------------


class BundleError(DeployError):
    """A bundle cannot be written or read."""

    code = "BUNDLE_ERROR"


class BundleCorrupt(BundleError):
    """A bundle's files are not those its manifest names."""

    code = "BUNDLE_CORRUPT"
    mlflow_code = "DATA_LOSS"

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(
            f"The bundle {path} is damaged", why=why, hint="Deploy the model version again to build it anew"
        )


# --- targets -----------------------------------------------------------------------------------------------


class TargetError(DeployError):
    """The target cannot do what was asked."""

    code = "TARGET_ERROR"


class DeploymentNotFound(TargetError):
    """No deployment has this name."""

    code = "DEPLOYMENT_NOT_FOUND"
    mlflow_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self, name: str, target: str, known: Iterable[str] = ()) -> None:
        guess = nearest(name, known)
        super().__init__(
            f"There is no deployment {name!r} on target {target!r}" + (f": {guess}" if guess else ""),
            hint=f"List them with: mlflow deployments list -t {target}",
        )


class DeploymentExists(TargetError):
    """The name is taken."""

    code = "DEPLOYMENT_EXISTS"
    mlflow_code = "RESOURCE_ALREADY_EXISTS"

    def __init__(self, name: str, target: str) -> None:
        super().__init__(
            f"A deployment {name!r} already exists on target {target!r}",
            hint=f"Change it with `mlflow deployments update -t {target} --name {name} -m MODEL_URI`, "
            "delete it first, or choose another name",
        )


class RevisionNotFound(TargetError):
    """The deployment has no such revision."""

    code = "REVISION_NOT_FOUND"
    mlflow_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self, name: str, revision: int, known: Iterable[int]) -> None:
        super().__init__(
            f"Deployment {name!r} has no revision {revision}",
            hint=f"Revisions: {', '.join(str(number) for number in sorted(known))}",
        )


class RevisionInUse(TargetError):
    """The revision cannot be removed now."""

    code = "REVISION_IN_USE"
    mlflow_code = "INVALID_STATE"

    def __init__(self, name: str, revision: int, why: str, hint: str) -> None:
        super().__init__(f"Revision {revision} of deployment {name!r} cannot be removed", why=why, hint=hint)


class EndpointDeploymentNotFound(TargetError):
    """The endpoint has no deployment of this name."""

    code = "ENDPOINT_DEPLOYMENT_NOT_FOUND"
    mlflow_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self, endpoint: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        guess = nearest(name, known)
        super().__init__(
            f"Endpoint {endpoint!r} has no deployment {name!r}" + (f": {guess}" if guess else ""),
            hint=f"Deployments in it: {', '.join(known)}",
        )


class EndpointDeploymentExists(TargetError):
    """The name is taken in the endpoint."""

    code = "ENDPOINT_DEPLOYMENT_EXISTS"
    mlflow_code = "RESOURCE_ALREADY_EXISTS"

    def __init__(self, endpoint: str, name: str) -> None:
        super().__init__(
            f"Endpoint {endpoint!r} already has a deployment {name!r}",
            hint=f"Change it with `mlflow deployments update --endpoint {endpoint} --name {name}`, or choose "
            "another name",
        )


class ReleaseNotFound(TargetError):
    """No release record has this number."""

    code = "RELEASE_NOT_FOUND"
    mlflow_code = "RESOURCE_DOES_NOT_EXIST"

    def __init__(self, name: str, number: int | None, last: int) -> None:
        which = f"no release record {number}" if number else "no release record"
        super().__init__(
            f"There is {which} of {name!r}",
            hint=f"They go from 1 to {last}" if last else "One is written with each change of a deployment",
        )


class RolloutFailed(TargetError):
    """A rollout was taken back."""

    code = "ROLLOUT_FAILED"
    mlflow_code = "ABORTED"

    def __init__(self, name: str, candidate: int, stable: int, why: str) -> None:
        super().__init__(
            f"The rollout of revision {candidate} of deployment {name!r} was rolled back",
            why=why,
            hint=f"Revision {stable} has all requests again; see `mlflow-deploy logs {name} -r {candidate}`",
        )


class NoRollout(TargetError):
    """No rollout goes on."""

    code = "NO_ROLLOUT"
    mlflow_code = "INVALID_STATE"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"No rollout of deployment {name!r} goes on",
            hint=f"Start one with `mlflow deployments update --name {name} -m MODEL_URI -C strategy=canary`",
        )


class NothingToRollBack(TargetError):
    """No earlier revision is known."""

    code = "ROLLBACK_IMPOSSIBLE"
    mlflow_code = "INVALID_STATE"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Deployment {name!r} cannot be rolled back",
            why="no other revision has served before",
            hint="Name one with --to REVISION, or update it with the model version that you want",
        )


class DeploymentBusy(TargetError):
    """Another command works on the same deployment."""

    code = "DEPLOYMENT_BUSY"
    mlflow_code = "RESOURCE_CONFLICT"

    def __init__(self, name: str, owner: str) -> None:
        super().__init__(
            f"Another command is working on deployment {name!r}",
            why=f"it is held by {owner}" if owner else "",
            hint="Wait until it has ended, then try again",
        )


class DeploymentUnavailable(TargetError):
    """The deployment exists but does not answer."""

    code = "DEPLOYMENT_UNAVAILABLE"
    mlflow_code = "TEMPORARILY_UNAVAILABLE"

    def __init__(self, name: str, url: str, why: str) -> None:
        super().__init__(
            f"Deployment {name!r} does not answer at {url}",
            why=why,
            hint=f"Look at `mlflow-deploy logs {name}`; after a restart of the machine run `mlflow-deploy up`",
        )


class PortInUse(TargetError):
    """The wanted port is taken by another process."""

    code = "PORT_IN_USE"
    mlflow_code = "RESOURCE_CONFLICT"

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"Port {port} on {host} is already in use",
            hint="Choose another with -C port=NUMBER, or leave it out to have a free one picked",
        )


class StartFailed(TargetError):
    """A revision did not become ready."""

    code = "START_FAILED"

    def __init__(self, name: str, revision: int, why: str, log_tail: str = "") -> None:
        super().__init__(
            f"Revision {revision} of deployment {name!r} did not become ready",
            why=why + (f". Last lines of its log: {log_tail}" if log_tail else ""),
            hint="The candidate was removed; nothing else was changed",
        )


class StateWriteFailed(TargetError):
    """The state of a deployment cannot be written."""

    code = "STATE_WRITE_FAILED"

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(
            f"Cannot write {path}", why=why, hint="The earlier state is unchanged; free space and try again"
        )


class SupervisorError(TargetError):
    """The process supervisor of the local target does not answer."""

    code = "SUPERVISOR_ERROR"

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why=why, hint="Run `mlflow-deploy up` to start it again")


class Unsupported(TargetError):
    """The target does not have the capability."""

    code = "CAPABILITY_MISSING"
    mlflow_code = "NOT_IMPLEMENTED"

    def __init__(self, target: str, what: str, hint: str = "") -> None:
        super().__init__(f"Target {target!r} does not support {what}", hint=hint)


class MonitorFailed(TargetError):
    """A command of a deployment's monitor job failed."""

    code = "MONITOR_FAILED"

    def __init__(self, name: str, why: str, hint: str = "") -> None:
        super().__init__(
            f"The monitors of deployment {name!r} did not do it",
            why=why,
            hint=hint or "See `mlflow-deploy monitor status` and the job's log",
        )


class MonitorActionFailed(TargetError):
    """An action that a monitor's alert leads to was not done."""

    code = "MONITOR_ACTION_FAILED"

    def __init__(self, action: str, why: str) -> None:
        super().__init__(
            f"The action {action} of a monitor was not done",
            why=why,
            hint="It is tried again a few times; see `mlflow-deploy history` for how it ended",
        )


# --- promotion ---------------------------------------------------------------------------------------------


class PromotionRefused(DeployError):
    """A version may not go where somebody wants it."""

    code = "PROMOTION_REFUSED"
    mlflow_code = "INVALID_STATE"

    def __init__(self, version: str, stage: str, why: str, hint: str = "") -> None:
        super().__init__(f"{version} cannot be promoted to {stage}", why=why, hint=hint)


# --- predictions -------------------------------------------------------------------------------------------


class PredictionError(DeployError):
    """A prediction request failed."""

    code = "PREDICTION_FAILED"
    mlflow_code = "BAD_REQUEST"


class InvalidInput(PredictionError):
    """The input of a prediction cannot be read or does not fit the model's signature."""

    code = "INPUT_INVALID"
    mlflow_code = "INVALID_PARAMETER_VALUE"


# --- data --------------------------------------------------------------------------------------------------


class DataError(DeployError):
    """Rows given for validation, profiles or monitoring cannot be used."""

    code = "DATA_INVALID"
    mlflow_code = "INVALID_PARAMETER_VALUE"


class StorageUnavailable(DeployError):
    """Shared storage of captured rows cannot be reached now; the same is tried again later."""

    code = "STORAGE_UNAVAILABLE"
    mlflow_code = "TEMPORARILY_UNAVAILABLE"

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"The shared storage {url} cannot be used",
            why=why,
            hint="Check the address, and that the monitor has its package and may use it",
        )
