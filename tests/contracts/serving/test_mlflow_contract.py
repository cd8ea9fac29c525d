"""MLflow's own scoring server and ours get the same requests and must give the same answers."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflow_deploy.serving.config import parse_config
from mlflow_deploy.serving.metrics import SharedMetrics
from mlflow_deploy.serving.recorder import SharedRecorder
from mlflow_deploy.serving.server import make_app
from mlflow_deploy.serving.worker import Launch, Worker, close
from tests.contracts.serving.corpus import Case, corpus
from tests.integration.serving.zoo import ZOO

Answer = tuple[int, Any]

# model, case, why the answers differ: all on purpose, or MLflow's fault
DIFFERENCES = [
    (".*", "no content type", "MLflow answers 500 to a missing Content-Type; ours says 415"),
    (
        "raising",
        "=(a negative)",
        "MLflow answers 400, the stack trace and the input to a model's exception; ours 500",
    ),
    ("dates", "(split|records|inputs) when=", "the model, not the request: see `raising`"),
    ("longs", "=2\\*\\*40", "MLflow lets an integer that is too large wrap around; ours refuses it"),
    ("booleans", "=(a list|an object)", "MLflow takes a list for true in some forms; ours refuses it in all"),
    ("tensors", "CSV", "MLflow fails on CSV for any tensor signature; ours reads it"),
    (
        "no_signature",
        "numbers in text",
        "a graph has a number type, so text that spells numbers is read as such",
    ),
    (
        "multi_output",
        "=(null|NaN)",
        "scikit-learn's forests send NaN another way than ONNX's: conversion's parity",
    ),
]


def ask(client: Any, case: Case) -> Answer:
    """Status and body of the answer."""
    headers = {"content-type": case.content_type} if case.content_type else {}
    answer = client.post("/invocations", content=case.body, headers=headers)
    try:
        return answer.status_code, answer.json()
    except ValueError:
        return answer.status_code, answer.text


def both(name: str, folder: Path) -> Iterator[tuple[Case, Answer, Answer]]:
    """MLflow's answer and ours to every request of the corpus."""
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    animal = ZOO[name](folder)
    native = TestClient(
        scoring_server.init(mlflow.pyfunc.load_model(str(animal.native))), raise_server_exceptions=False
    )
    worker = Worker(Launch(animal.bundle, parse_config({}), SharedMetrics(1), SharedRecorder(1)), 0)
    worker.load()
    ours = httpx.Client(transport=httpx.WSGITransport(app=make_app(worker)), base_url="http://ours")
    for case in corpus(animal):
        yield case, ask(native, case), ask(ours, case)


def equal(native: Answer, ours: Answer) -> bool:
    """The same status and, when it is 200, the same predictions."""
    return native[0] == ours[0] and (native[0] != 200 or close(ours[1], native[1]))


def reason(model: str, case: str) -> str | None:
    """Why the answers to this request may differ."""
    for of, which, why in DIFFERENCES:
        if re.fullmatch(of, model) and re.search(which, case):
            return why
    return None


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Case, Answer, Answer]]]:
    """The answers for the whole zoo."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # What pandas, MLflow and the models warn about on odd input is their own.
        warnings.simplefilter("ignore")
        return {name: list(both(name, tmp_path_factory.mktemp(name))) for name in ZOO}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_answers_differ_only_where_it_is_said(name: str, compared: dict[str, Any]) -> None:
    odd = [
        f"{case.name}: MLflow {native[0]} {str(native[1])[-200:]}, ours {ours[0]} {str(ours[1])[:200]}"
        for case, native, ours in compared[name]
        if not equal(native, ours) and reason(name, case.name) is None
    ]
    assert odd == []


@pytest.mark.slow
def test_almost_all_answers_are_equal(compared: dict[str, Any]) -> None:
    answers = [(native, ours) for cases in compared.values() for _, native, ours in cases]
    same = sum(equal(native, ours) for native, ours in answers)
    print(f"{same} of {len(answers)} answers equal")
    assert len(answers) > 1500
    assert same / len(answers) >= 0.98


@pytest.mark.slow
def test_errors_never_repeat_the_input_or_a_stack_trace(compared: dict[str, Any]) -> None:
    for cases in compared.values():
        for case, _, (status, body) in cases:
            if status != 200:
                assert set(body) == {"error_code", "message"}, case.name
                assert "Traceback" not in body["message"]
                assert "1234.5" not in body["message"]


@pytest.mark.slow
def test_only_the_model_itself_makes_a_500(compared: dict[str, Any]) -> None:
    made = {name for name, cases in compared.items() for _, _, ours in cases if ours[0] >= 500}
    assert made <= {"raising", "dates"}
