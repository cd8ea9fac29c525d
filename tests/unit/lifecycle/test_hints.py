"""Hints: what the MLflow server saw, and what the controller makes of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.lifecycle.hints import MOST, Hint, Hints, give
from mlflow_deploy.lifecycle.records.moves_of_model import Move, _told, mover
from mlflow_deploy.ui.watch import hint_of

REST, PAGES = "/api/2.0/mlflow/", "/prefix/ajax-api/2.0/mlflow/"


@pytest.mark.alone
def test_hints_wait_until_they_are_dealt_with(home: Path) -> None:
    hints, stop = Hints(), threading.Event()
    assert hints.read() == []
    first = Hint(model="a", at="2027-01-01T00:00:00+00:00")
    assert give(first)
    assert give(Hint(model="b"))
    (home / "hints" / "9.json").write_text("{")
    assert [each.model for each in hints.read()] == ["a", "b"]
    assert hints.read()[0] == first, "a controller that was killed reads them again"
    begun = time.monotonic()
    hints.wait(0.3, stop)
    assert time.monotonic() - begun >= 0.3, "those that were read end no wait"
    threading.Timer(0.1, give, [Hint(model="c")]).start()
    begun = time.monotonic()
    hints.wait(20, stop)
    assert time.monotonic() - begun < 2
    hints.done()
    assert [each.model for each in Hints().read()] == ["c"], "what came meanwhile waits on"


def test_there_is_an_end_to_hints_that_nobody_takes(home: Path) -> None:
    (home / "hints").mkdir(parents=True)
    for number in range(MOST):
        (home / "hints" / f"{number}.json").touch()
    assert not give(Hint(model="a"))


@pytest.mark.parametrize(
    ("method", "path", "asked", "expected"),
    [
        ("POST", "model-versions/transition-stage",
         {"version": "2", "stage": "production", "archive_existing_versions": True},
         ("stage", "2", "Production", True)),
        ("POST", "registered-models/alias", {"alias": "champion", "version": "2"},
         ("alias", "champion", "2", False)),
        ("DELETE", "registered-models/alias", {"alias": "champion"}, ("alias", "champion", "", False)),
        ("DELETE", "model-versions/delete", {"version": "2"}, ("version", "2", "removed", False)),
        ("DELETE", "registered-models/delete", {}, ("other", "", "", False)),
        ("POST", "model-versions/set-tag", {"key": "deploy.approval.Production"}, ("other", "", "", False)),
        ("POST", "model-versions/set-tag", {"key": "colour"}, None),
        ("PATCH", "model-versions/update", {"version": "2"}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", [REST, PAGES])
def test_requests_of_interest_are_hints(
    method: str, path: str, asked: Any, expected: Any, prefix: str
) -> None:
    hint = hint_of(method, prefix + path, {"name": "churn", **asked}, "ada")
    assert (hint and (hint.kind, hint.what, hint.after, hint.archives)) == expected
    assert hint is None or (hint.model, hint.by) == ("churn", "ada")
    assert hint_of(method, prefix + path, asked, "ada") is None, "a request without a model"


def test_a_move_is_told_by_the_hint_of_it() -> None:
    def move(kind: Any, what: str, before: str, after: str) -> Move:
        return Move(kind=kind, what=what, before=before, after=after, at="later", not_before="earlier")

    hints = [
        Hint(model="m", kind="stage", what="2", after="Production", archives=True, by="ada", at="t1"),
        Hint(model="m", kind="version", what="5", after="removed", by="bob", at="t2"),
        Hint(model="m", kind="alias", what="champion", after="2", at="t3"),
    ]
    cases = {
        move("stage", "2", "None", "Production"): ("ada", "t1", ""),
        move("stage", "1", "Production", "Archived"): ("ada", "t1", ""),
        move("alias", "old", "5", ""): ("bob", "t2", ""),
        move("alias", "champion", "1", "2"): ("", "t3", ""),
        move("stage", "3", "Staging", "Archived"): ("", "later", "earlier"),
        move("alias", "champion", "2", "3"): ("", "later", "earlier"),
    }
    for each, expected in cases.items():
        told = _told(each, hints)
        assert (told.by, told.at, told.not_before) == expected


def test_the_last_who_moved_it_there_is_the_mover() -> None:
    def by(who: str, kind: Any, what: str, after: str) -> Move:
        return Move(kind=kind, what=what, before="", after=after, at="", by=who)

    moves = [
        by("ada", "stage", "2", "Production"),
        by("bob", "alias", "champion", "2"),
        by("eve", "stage", "3", "Staging"),
    ]
    assert mover(moves, "2", "Production", "champion") == "bob"
    assert mover(moves[:1], "2", "Production", "champion") == "ada"
    assert mover(moves, "3", "Production", "champion") == ""
