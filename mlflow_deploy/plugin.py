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
    DeploymentUnavailable,
    InvalidInput,
    PredictionError,
    UnknownSetting,
    Unsupported,
)
from mlflow_deploy.progress import live_progress
from mlflow_deploy.targets import open_target

if TYPE_CHECKING:
    import pandas as pd

_WRAPPERS = ("dataframe_split", "dataframe_records", "inputs", "instances")
_PREDICT_SECONDS = 120.0
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
mlflow_deploy runs model versions as supervised processes of this machine (target `local`).

  mlflow deployments create  -t local --name NAME -m MODEL_URI [-f onnx|pyfunc] [-C key=value ...]
  mlflow deployments update  -t local --name NAME [-m MODEL_URI] [-C key=value ...]
  mlflow deployments predict -t local --name NAME -I input.json
  mlflow deployments get     -t local --name NAME
  mlflow deployments list    -t local
  mlflow deployments delete  -t local --name NAME
  mlflow deployments run-local -t local --name NAME -m MODEL_URI    (in the foreground, until Ctrl-C)

MODEL_URI is models:/NAME/VERSION, models:/NAME/STAGE, models:/NAME@ALIAS, models:/m-ID, runs:/RUN_ID/PATH
or a folder. NAME has lower-case letters, digits and '-'. Input files hold dataframe_split,
dataframe_records, inputs or instances as in MLflow's scoring protocol, or a list of records.

Settings (-C key=value):
{settings}

Other commands: mlflow-deploy logs NAME -f, mlflow-deploy status, mlflow-deploy up (after a restart).
State is kept in MLFLOW_DEPLOY_HOME, by default in the user's state directory.
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
                # The terminal sent the server the same signal; it drains.
                status = server.wait()
            if status not in (0, 130, -2, -15):
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
        """Deploy a model version under a new name; returns when it answers."""
        from mlflow_deploy.lifecycle import release

        with _mlflow_errors(), live_progress() as progress:
            self._no_endpoint(endpoint)
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
        from mlflow_deploy.lifecycle import release

        with _mlflow_errors(), live_progress() as progress:
            self._no_endpoint(endpoint)
            return release.update(
                self._target, name, model_uri, flavor=flavor, config=config, progress=progress
            )

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Drain and remove a deployment; one that does not exist is no error."""
        from mlflow_deploy.lifecycle import release

        with _mlflow_errors():
            self._no_endpoint(endpoint)
            for key in config or {}:
                raise UnknownSetting(key, [])
            release.delete(self._target, name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """All deployments of the target, by name."""
        from mlflow_deploy.lifecycle import release

        with _mlflow_errors():
            self._no_endpoint(endpoint)
            return [release.describe(self._target, record) for record in self._target.records()]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """One deployment: name, flavor, target, url, status, revision, model and more."""
        from mlflow_deploy.lifecycle import release

        with _mlflow_errors():
            self._no_endpoint(endpoint)
            return release.describe(self._target, self._target.require(name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Send rows to a deployment.

        Args:
            inputs: a DataFrame, a body of MLflow's scoring protocol (`{"dataframe_split": ...}` and the like),
                an array or nested list, or a mapping from tensor name to array.
        """
        with _mlflow_errors():
            self._no_endpoint(endpoint)
            if not deployment_name:
                raise ConfigError("No deployment was named", hint="Give --name NAME")
            record = self._target.require(deployment_name)
            return PredictionsResponse(
                _post(deployment_name, self._target.url(record), _request_body(inputs))
            )

    def explain(
        self, deployment_name: str | None = None, df: pd.DataFrame | None = None, endpoint: str | None = None
    ) -> Any:
        """Explanations are not offered by this target yet."""
        self._unsupported("explanations")

    def create_endpoint(self, name: str, config: Mapping[str, Any] | None = None) -> Any:
        """Endpoints are not offered: a deployment has its own stable address."""
        self._unsupported("endpoints")

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> Any:
        """Endpoints are not offered: a deployment has its own stable address."""
        self._unsupported("endpoints")

    def delete_endpoint(self, endpoint: str) -> Any:
        """Endpoints are not offered: a deployment has its own stable address."""
        self._unsupported("endpoints")

    def list_endpoints(self) -> Any:
        """Endpoints are not offered: a deployment has its own stable address."""
        self._unsupported("endpoints")

    def get_endpoint(self, endpoint: str) -> Any:
        """Endpoints are not offered: a deployment has its own stable address."""
        self._unsupported("endpoints")

    def _unsupported(self, what: str) -> None:
        with _mlflow_errors():
            raise Unsupported(self._target.name, what)

    def _no_endpoint(self, endpoint: str | None) -> None:
        if endpoint:
            raise Unsupported(self._target.name, "endpoints", "Leave --endpoint out and use --name")


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


# --- predictions -------------------------------------------------------------------------------------------


def _request_body(inputs: Any) -> dict[str, Any]:
    """The body of MLflow's scoring protocol for whatever a caller or MLflow's command line hands over."""
    import numpy as np
    import pandas as pd

    if isinstance(inputs, pd.DataFrame):
        wrapped = [column for column in inputs.columns if column in _WRAPPERS]
        if len(wrapped) == 1 and set(inputs.columns) <= {wrapped[0], "params"}:
            return {column: _unwrapped(inputs[column]) for column in inputs.columns}
        split = inputs.to_json(orient="split", index=False, date_format="iso", double_precision=15)
        return {"dataframe_split": _loads(split)}
    if isinstance(inputs, pd.Series):
        return _request_body(inputs.to_frame())
    if isinstance(inputs, Mapping):
        if any(key in inputs for key in _WRAPPERS):
            return {str(key): _plain(value) for key, value in inputs.items()}
        return {"inputs": {str(key): _plain(value) for key, value in inputs.items()}}
    if isinstance(inputs, list | tuple | np.ndarray):
        if len(inputs) and isinstance(inputs[0], Mapping):
            return {"dataframe_records": _plain(inputs)}
        return {"inputs": _plain(inputs)}
    raise InvalidInput(
        f"Input of type {type(inputs).__name__} cannot be sent",
        hint="Give a DataFrame, a list, an array, or a mapping as in MLflow's scoring protocol",
    )


def _unwrapped(column: pd.Series[Any]) -> Any:
    """Undo `pandas.read_json` on `{"dataframe_split": {...}}` and the like: MLflow's command line does it.

    pandas makes a column of the wrapper and, where its content is a mapping, an index of the inner keys.
    """
    values = [_plain(value) for value in column]
    if all(isinstance(key, str) for key in column.index):
        return {
            key: value
            for key, value in zip(column.index, values, strict=True)
            if not (isinstance(value, float) and value != value)
        }
    return values


def _plain(value: Any) -> Any:
    """Lists and Python scalars in place of numpy and pandas values, which JSON does not know."""
    import datetime

    import numpy as np
    import pandas as pd

    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, datetime.date):
        return value.isoformat()
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return None
    return value


def _loads(text: str) -> Any:
    import msgspec

    return msgspec.json.decode(text.encode())


def _post(name: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST a body to a deployment's /invocations and return its answer."""
    import msgspec
    import requests

    try:
        with requests.Session() as session:
            # A proxy of the environment has no business between this machine and itself.
            session.trust_env = False
            response = session.post(
                f"{url}/invocations",
                data=msgspec.json.encode(body),
                headers={"Content-Type": "application/json"},
                timeout=_PREDICT_SECONDS,
            )
    except requests.RequestException as error:
        raise DeploymentUnavailable(name, url, str(getattr(error.__context__, "reason", error))) from error
    if response.status_code == 200:
        answer = response.json()
        if isinstance(answer, dict) and "predictions" in answer:
            return answer
        raise PredictionError(f"Deployment {name!r} answered without predictions", why=response.text[:300])
    try:
        why = str(response.json()["message"])
    except (requests.JSONDecodeError, KeyError, TypeError):
        why = response.text[:300]
    if 400 <= response.status_code < 500:
        raise InvalidInput(f"Deployment {name!r} refused the input", why=why)
    raise PredictionError(
        f"Deployment {name!r} failed with status {response.status_code}",
        why=why,
        hint=f"The full story is in `mlflow-deploy logs {name}`",
    )
