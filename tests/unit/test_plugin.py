"""MLflow's door: what callers and MLflow's command line hand over, and what leaves as an error."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.deployments.plugin_manager import DeploymentPlugins
from mlflow.exceptions import MlflowException

from mlflow_deploy import plugin
from mlflow_deploy.errors import ConfigError, DeploymentNotFound, InvalidInput, UnknownSetting, Unsupported
from mlflow_deploy.scoring import request_body

SPLIT = {"columns": ["a", "b"], "data": [[1, "x"], [2, None]]}


def test_mlflow_finds_the_plugin() -> None:
    assert DeploymentPlugins()["local"] is plugin


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_split": SPLIT},
        {"dataframe_split": {**SPLIT, "index": [0, 1]}},
        {"dataframe_records": [{"a": 1, "b": "x"}, {"a": 2, "b": None}]},
        {"inputs": [[1.0, 2.0], [3.0, 4.0]]},
        {"inputs": {"a": [1, 2], "b": ["x", "y"]}},
        {"inputs": [1, 2, 3]},
        {"instances": [[1, 2], [3, 4]]},
        {"instances": [{"a": 1}, {"a": 2}]},
    ],
)
def test_wrapped_files_survive_what_mlflow_reads_them_with(document: dict[str, Any]) -> None:
    frame = pd.read_json(io.StringIO(json.dumps(document)))
    assert request_body(frame) == document


def test_list_of_records_is_sent_as_a_frame() -> None:
    frame = pd.read_json(io.StringIO('[{"a": 1, "b": "x"}, {"a": null, "b": "y"}]'))
    assert request_body(frame) == {
        "dataframe_split": {"columns": ["a", "b"], "data": [[1.0, "x"], [None, "y"]]}
    }


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (np.array([[1.0, np.nan]]), {"inputs": [[1.0, None]]}),
        ([[1, 2]], {"inputs": [[1, 2]]}),
        ([{"a": 1}], {"dataframe_records": [{"a": 1}]}),
        ({"x": np.array([1, 2])}, {"inputs": {"x": [1, 2]}}),
        ({"inputs": np.array([1]), "params": {"k": 1}}, {"inputs": [1], "params": {"k": 1}}),
        (
            pd.DataFrame({"t": pd.to_datetime(["2026-01-02T03:04:05"])}),
            {"dataframe_split": {"columns": ["t"], "data": [["2026-01-02T03:04:05.000"]]}},
        ),
        (pd.Series([1, 2], name="a"), {"dataframe_split": {"columns": ["a"], "data": [[1], [2]]}}),
    ],
)
def test_python_values_become_protocol_bodies(inputs: Any, body: dict[str, Any]) -> None:
    assert request_body(inputs) == body
    json.dumps(request_body(inputs), allow_nan=False)


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(InvalidInput, match="type object"):
        request_body(object())


def test_errors_leave_as_mlflow_and_click_and_own_class(home: Path) -> None:
    client = get_deploy_client("local")
    with pytest.raises(DeploymentNotFound) as caught:
        client.get_deployment("nope")
    error = caught.value
    assert isinstance(error, MlflowException)
    assert isinstance(error, click.ClickException)
    assert error.error_code == "RESOURCE_DOES_NOT_EXIST"
    assert error.format_message() == error.text
    assert "There is no deployment 'nope' on target 'local'" in error.text
    assert "\n" not in error.format_message()


def test_calls_about_what_is_not_there_are_refused(home: Path) -> None:
    client = get_deploy_client("local")
    for call in (
        lambda: client.get_deployment("d", endpoint="e"),
        lambda: client.predict("d", [[1]], endpoint="e"),
        lambda: client.list_deployments(endpoint="e"),
        lambda: client.get_endpoint("e"),
        lambda: client.update_endpoint("e", config={"traffic": "d=100"}),
        lambda: client.update_deployment("d", endpoint="e"),
        lambda: client.delete_deployment("d", config={"revision": "1"}),
    ):
        with pytest.raises(DeploymentNotFound):
            call()
    client.delete_deployment("d", endpoint="e")
    client.delete_endpoint("e")
    assert client.list_endpoints() == []
    with pytest.raises(Unsupported):
        client.explain("d", None)
    with pytest.raises(UnknownSetting, match="did you mean 'revision'"):
        client.delete_deployment("d", config={"revisionn": "1"})
    for number in ("0", "-1", "two"):
        with pytest.raises(ConfigError, match="a revision is a number from 1"):
            client.delete_deployment("d", config={"revision": number})
    with pytest.raises(ConfigError, match="goes by its name"):
        client.delete_deployment("d", config={"revision": "1"}, endpoint="e")
    with pytest.raises(ConfigError, match="needs a model"):
        client.create_endpoint("e")
    with pytest.raises(ConfigError):
        client.predict(None, [[1]])
    with pytest.raises(ConfigError, match="path"):
        get_deploy_client("local:/somewhere")


def test_help_names_every_setting() -> None:
    from mlflow_deploy.config import describe_settings

    text = plugin.target_help()
    assert [row.key for row in describe_settings() if row.key not in text] == []
