"""MLflow's door: what `mlflow deployments` and `mlflow.deployments.get_deploy_client` load.

Thin on purpose. MLflow takes the one `BaseDeploymentClient` subclass of this module's namespace as the
client, so no other may be imported here.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException

from mlflow_deploy.config import describe_settings, parse_spec
from mlflow_deploy.errors import (
    ConfigError,
    DeployError,
    PredictionError,
    UnknownSetting,
    Unsupported,
)
from mlflow_deploy.progress import live_progress
from mlflow_deploy.scoring import post, request_body
from mlflow_deploy.targets import open_target

if TYPE_CHECKING:
    import pandas as pd

_DOOR_ERRORS: dict[type[DeployError], Any] = {}


def target_help() -> str:
    """Text of `mlflow deployments help -t local`."""
    rows = describe_settings()
    width = max(len(row.key) for row in rows)
    settings = "\n".join(
        f"  {row.key:<{width}}  {row.doc.rstrip('.')} (type {row.type}, default {row.default})"
        for row in rows
    )
    return f"""\
mlflow_deploy runs model versions as supervised processes of this machine (target `local`) or as containers
(target `docker`, with the extra `docker`).

  mlflow deployments create  -t local --name NAME -m MODEL_URI [-f onnx|pyfunc] [-C key=value ...]
  mlflow deployments update  -t local --name NAME [-m MODEL_URI] [-C key=value ...]
  mlflow deployments predict -t local --name NAME -I input.json
  mlflow deployments get     -t local --name NAME
  mlflow deployments list    -t local
  mlflow deployments delete  -t local --name NAME [-C revision=NUMBER]
  mlflow deployments run-local -t local --name NAME -m MODEL_URI    (in the foreground, until Ctrl-C)

MODEL_URI is models:/NAME/VERSION, models:/NAME/STAGE, models:/NAME@ALIAS, models:/m-ID, runs:/RUN_ID/PATH
or a folder. NAME has lower-case letters, digits and '-'. Input files hold dataframe_split,
dataframe_records, inputs or instances as in MLflow's scoring protocol, or a list of records.

Settings (-C key=value):
{settings}

Endpoints: each verb takes --endpoint ENDPOINT too. `create --endpoint E --name A` makes endpoint E or adds
deployment A to it, `update-endpoint --endpoint E -C traffic=A=90,B=10` shares its requests.

Other commands: mlflow-deploy plan NAME -m MODEL_URI (what an update would change), status, history,
logs NAME -f, traffic, rollout, rollback, prune, image, up (after a restart).
State is kept in MLFLOW_DEPLOY_HOME, by default in the user's state directory. `predict` sends the token in
MLFLOW_DEPLOY_TOKEN and the client certificate in MLFLOW_DEPLOY_CLIENT_CERT where the deployment asks for them.
"""


def run_local(
    name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Serve a model in the foreground until Ctrl-C; no deployment is made."""
    import tempfile
    from pathlib import Path

    import msgspec

    from mlflow_deploy.lifecycle.release import prepare
    from mlflow_deploy.targets.local import LocalTarget

    with _mlflow_errors():
        spec = parse_spec(config, flavor=flavor)
        with tempfile.TemporaryDirectory(prefix="mlflow-deploy-") as folder:
            target = LocalTarget(Path(folder))
            port = target.reserve_address(name, spec.host, spec.port)
            with live_progress() as progress:
                bundle = prepare(model_uri, spec, progress)
            settings = Path(folder) / "settings.json"
            settings.write_bytes(
                msgspec.json.encode({"deployment": name, "revision": 1, "serving": spec.serving})
            )
            click.echo(
                f"Serving {model_uri} as {bundle.manifest.format} on http://{spec.host}:{port}", err=True
            )
            command = [sys.executable, "-m", "mlflow_deploy.serving", "--bundle", str(bundle.path)]
            command += ["--host", spec.host, "--port", str(port), "--settings", str(settings)]
            server = subprocess.Popen(command)
            try:
                status = server.wait()
            except KeyboardInterrupt:
                server.terminate()
                status = server.wait()
            if status:
                raise PredictionError(f"The scoring server ended with status {status}")


class DeploymentClient(BaseDeploymentClient):
    """`mlflow.deployments` client of mlflow_deploy.

    Raises:
        MlflowException: from every method, when it fails; the error is also an instance of the matching class
            of `mlflow_deploy.errors`.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri=target_uri)  # type: ignore[no-untyped-call]
        name, _, rest = target_uri.partition(":")
        with _mlflow_errors():
            if rest.strip("/"):
                raise ConfigError(
                    f"The target {target_uri!r} has a path, which means nothing here", hint=f"Use -t {name}"
                )
            self._target = open_target(name)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy a model version under a new name; returns when it answers.

        With an endpoint, add a deployment to it; the first one makes the endpoint.
        """
        from mlflow_deploy.lifecycle import endpoints, release

        with _mlflow_errors(), live_progress() as progress:
            if endpoint:
                return endpoints.create_in(
                    self._target, endpoint, name, model_uri, flavor=flavor, config=config, progress=progress
                )
            return release.create(
                self._target, name, model_uri, flavor=flavor, config=config, progress=progress
            )

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Replace what a deployment serves; the old revision serves until the new one is ready."""
        from mlflow_deploy.lifecycle import endpoints, release

        with _mlflow_errors(), live_progress() as progress:
            if endpoint:
                return endpoints.update_in(
                    self._target, endpoint, name, model_uri, flavor=flavor, config=config, progress=progress
                )
            return release.update(
                self._target, name, model_uri, flavor=flavor, config=config, progress=progress
            )

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Drain and remove a deployment; one that does not exist is no error.

        Args:
            config: `revision` removes only that revision, which must carry no traffic.
        """
        from mlflow_deploy.lifecycle import endpoints, release, revisions

        with _mlflow_errors():
            number = _revision(config)
            if endpoint:
                if number:
                    raise ConfigError("An endpoint's deployment goes by its name", hint="Leave revision= out")
                endpoints.delete_in(self._target, endpoint, name)
            elif number:
                revisions.delete_revision(self._target, name, number)
            else:
                release.delete(self._target, name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """All deployments of the target, or those in an endpoint, by name."""
        from mlflow_deploy.lifecycle import endpoints, release

        with _mlflow_errors():
            if endpoint:
                return endpoints.list_in(self._target, endpoint)
            return [release.describe(self._target, record) for record in self._target.records()]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """One deployment: name, flavor, target, url, status, revision, model and more."""
        from mlflow_deploy.lifecycle import endpoints, release

        with _mlflow_errors():
            if endpoint:
                return endpoints.describe_in(self._target, endpoint, name)
            return release.describe(self._target, self._target.require(name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Send rows to a deployment, or to an endpoint as its traffic goes.

        Args:
            deployment_name: with an endpoint, the deployment in it that shall answer whatever the traffic says.
            inputs: a DataFrame, a body of MLflow's scoring protocol (`{"dataframe_split": ...}` and the like),
                an array or nested list, or a mapping from tensor name to array.
        """
        from mlflow_deploy.lifecycle import endpoints

        with _mlflow_errors():
            name = endpoint or deployment_name
            if not name:
                raise ConfigError("No deployment was named", hint="Give --name NAME")
            record, revision = self._target.require(name), 0
            if endpoint and deployment_name:
                revision = endpoints.forced_revision(self._target, record, deployment_name)
            certificate = record.stable.spec.get("serving", {}).get("tls_cert") or True
            url = self._target.url(record)
            answer = post(name, url, request_body(inputs), certificate, revision=revision)
            return PredictionsResponse(answer)

    def explain(
        self, deployment_name: str | None = None, df: pd.DataFrame | None = None, endpoint: str | None = None
    ) -> Any:
        """Explanations are not offered by this target yet."""
        self._unsupported("explanations")

    def create_endpoint(self, name: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Make an endpoint with its first deployment: `config` has `model_uri` and settings."""
        from mlflow_deploy.lifecycle import endpoints

        with _mlflow_errors(), live_progress() as progress:
            return endpoints.create_endpoint(self._target, name, config, progress=progress)

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Share the requests of an endpoint among its deployments: `config` has `traffic`."""
        from mlflow_deploy.lifecycle import endpoints

        with _mlflow_errors(), live_progress() as progress:
            return endpoints.update_endpoint(self._target, endpoint, config, progress=progress)

    def delete_endpoint(self, endpoint: str) -> None:
        """Drain and remove an endpoint with all deployments in it; one that does not exist is no error."""
        from mlflow_deploy.lifecycle import release

        with _mlflow_errors():
            release.delete(self._target, endpoint)

    def list_endpoints(self) -> list[dict[str, Any]]:
        """All endpoints of the target, by name; every deployment is one."""
        from mlflow_deploy.lifecycle import endpoints

        with _mlflow_errors():
            records = self._target.records()
            return [endpoints.describe_endpoint(self._target, record.name) for record in records]

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        """One endpoint: name, url, status, traffic by deployment, and the deployments in it."""
        from mlflow_deploy.lifecycle import endpoints

        with _mlflow_errors():
            return endpoints.describe_endpoint(self._target, endpoint)

    def _unsupported(self, what: str) -> None:
        with _mlflow_errors():
            raise Unsupported(self._target.name, what)


def _revision(config: Mapping[str, Any] | None) -> int:
    """The revision that `delete` names, 0 for the whole deployment."""
    for key in config or {}:
        if key != "revision":
            raise UnknownSetting(key, ["revision"])
    text = str((config or {}).get("revision", ""))
    if text and not (text.isdecimal() and int(text)):
        raise ConfigError(f"Setting revision={text} cannot be used", why="a revision is a number from 1")
    return int(text or 0)


# --- errors at the door ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _mlflow_errors() -> Iterator[None]:
    """Let errors leave as what Python callers (`MlflowException`) and MLflow's command line expect."""
    try:
        yield
    except DeployError as error:
        raise _door_error(type(error))(error) from error


def _door_error(kind: type[DeployError]) -> Any:
    """The class of an error at MLflow's door: `kind`, an MlflowException, and shown by click as one line."""

    def init(self: Any, error: DeployError) -> None:
        MlflowException.__init__(self, error.text, error_code=_error_code(kind.mlflow_code))
        self.what, self.why, self.hint = error.what, error.why, error.hint

    if kind not in _DOOR_ERRORS:
        _DOOR_ERRORS[kind] = type(
            kind.__name__,
            (kind, MlflowException, click.ClickException),
            {
                "__init__": init,
                "__doc__": kind.__doc__,
                "__module__": kind.__module__,
                "exit_code": kind.exit_status,
                "text": property(lambda self: self.message),
                "format_message": lambda self: self.message,
            },
        )
    return _DOOR_ERRORS[kind]


def _error_code(name: str) -> int:
    from mlflow.protos import databricks_pb2

    codes = databricks_pb2.ErrorCode
    return int(codes.Value(name) if name in codes.keys() else codes.Value("INTERNAL_ERROR"))  # noqa: SIM118
