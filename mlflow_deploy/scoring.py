"""Predictions over HTTP: from what callers hand over to a body of MLflow's protocol, and back."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_deploy.errors import DeploymentUnavailable, InvalidInput, PredictionError
from mlflow_deploy.gateway.spec import REVISION_HEADER

if TYPE_CHECKING:
    import pandas as pd

_WRAPPERS = ("dataframe_split", "dataframe_records", "inputs", "instances")
_PREDICT_SECONDS = 120.0


def request_body(inputs: Any) -> dict[str, Any]:
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
        return request_body(inputs.to_frame())
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


def post(
    name: str, url: str, body: dict[str, Any], verify: str | bool, *, revision: int = 0
) -> dict[str, Any]:
    """POST a body to a deployment's /invocations and return its answer.

    Args:
        verify: file with the certificate to trust, or True for those of the system.
        revision: the revision that shall answer, whatever the traffic says; 0 = as the traffic says.
    """
    import msgspec
    import requests

    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("MLFLOW_DEPLOY_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    if revision:
        headers[REVISION_HEADER] = str(revision)
    try:
        with requests.Session() as session:
            # A proxy of the environment has no business between this machine and itself.
            session.trust_env = False
            response = session.post(
                f"{url}/invocations",
                data=msgspec.json.encode(body),
                headers=headers,
                timeout=_PREDICT_SECONDS,
                verify=verify,
                cert=os.environ.get("MLFLOW_DEPLOY_CLIENT_CERT") or None,
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
