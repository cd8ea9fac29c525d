"""The examples of docs/endpoints.md run as printed: MLflow's endpoints in Python and in a terminal."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client
from mlflow.deployments.cli import commands

from mlflow_deploy.errors import RevisionInUse
from tests.e2e.conftest import servers_of

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "endpoints.md"


def block(kind: str) -> str:
    """The first block of a language in the document."""
    found = re.search(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_endpoint_in_python_as_documented(
    home: Path, iris_models: str, capsys: pytest.CaptureFixture[str], iris_rows: Any
) -> None:
    exec(compile(block("python"), str(DOCUMENT), "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("predictions") == 2
    assert "{'blue': 90, 'green': 10}" in printed
    client = get_deploy_client("local")
    assert [each["name"] for each in client.list_deployments(endpoint="shop")] == ["green"]
    with pytest.raises(RevisionInUse, match="it gets 100 % of the requests"):
        client.delete_deployment("green", endpoint="shop")
    assert client.predict(inputs=iris_rows.head(2), endpoint="shop").get_predictions().shape == (2, 1)
    client.delete_endpoint("shop")
    client.delete_endpoint("shop")
    assert client.list_endpoints() == []
    assert servers_of(home) == []


@pytest.mark.slow
def test_endpoint_in_a_terminal_as_documented(home: Path, iris_models: str) -> None:
    printed = {}
    for line in block("console").splitlines():
        words = shlex.split(line.removeprefix("$ mlflow deployments "))
        done = CliRunner().invoke(commands, words)
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        printed[words[0]] = done.output
    assert "traffic: {'blue': 90, 'green': 10}" in printed["get-endpoint"]
    assert "'name': 'blue'" in printed["list"]
    assert "endpoint: store" in printed["get"]
    assert "'name': 'store'" in printed["list-endpoints"]
    assert servers_of(home) == []
