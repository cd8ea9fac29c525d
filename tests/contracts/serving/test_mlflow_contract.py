"""MLflow's own scoring server and ours get the same requests and must give the same answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflow_deploy.serving.config import parse_config
from mlflow_deploy.serving.metrics import SharedMetrics
from mlflow_deploy.serving.server import make_app
from mlflow_deploy.serving.worker import Launch, Worker, close
from tests.contracts.serving.corpus import Case, corpus
from tests.integration.serving.zoo import ZOO, Animal


def _mlflow_answer(client: Any, case: Case) -> tuple[int, Any]:
    headers = {"content-type": case.content_type} if case.content_type else {}
    answer = client.post("/invocations", content=case.body, headers=headers)
    return answer.status_code, _json(answer)


def _json(answer: Any) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text


def run(name: str, folder: Path) -> Iterator[tuple[Case, tuple[int, Any], tuple[int, Any]]]:
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    animal: Animal = ZOO[name](folder)
    native = TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(animal.native))), raise_server_exceptions=False)
    worker = Worker(Launch(animal.bundle, parse_config({}), SharedMetrics(1)), 0)
    worker.load()
    ours = httpx.Client(transport=httpx.WSGITransport(app=make_app(worker)), base_url="http://ours")
    for case in corpus(animal):
        yield case, _mlflow_answer(native, case), _mlflow_answer(ours, case)
