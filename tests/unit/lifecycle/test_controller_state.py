"""Which version shall serve, by the alias, the stage and who moved which; and what is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.lifecycle.controller.state import Memory, Seen, decide


def seen(alias: str, classic: str, wanted: str) -> Seen:
    return Seen(alias=alias, classic=classic, wanted=wanted)


@pytest.mark.parametrize(
    ("before", "alias", "classic", "wanted"),
    [
        (None, "", "", ""),
        (None, "2", "1", "2"),
        (None, "", "1", "1"),
        (seen("1", "1", "1"), "1", "1", "1"),
        (seen("1", "1", "1"), "2", "1", "2"),  # somebody set the alias
        (seen("1", "1", "1"), "1", "2", "2"),  # somebody moved a version to the stage
        (seen("2", "1", "2"), "2", "1", "2"),  # the alias was set and nothing has happened since
        (seen("2", "2", "2"), "2", "1", "1"),  # the stage went back: a rollback
        (seen("2", "2", "2"), "1", "2", "1"),  # the alias went back
        (seen("2", "2", "2"), "2", "", ""),  # what served was archived
        (seen("2", "2", "2"), "", "", ""),  # what served was deleted
        (seen("2", "2", "2"), "", "2", "2"),  # only the alias was taken away
        (seen("2", "1", "2"), "2", "", "2"),  # another one was archived
        (seen("2", "", ""), "2", "", ""),  # archived before, and nothing has happened since
        (seen("2", "", ""), "1", "", "1"),
    ],
)
def test_who_moved_last_counts(before: Seen | None, alias: str, classic: str, wanted: str) -> None:
    assert decide(before, alias, classic) == wanted


def test_memory_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "home" / "memory.json"
    Memory(path).put("a", "Production", seen("1", "1", "1"))
    assert Memory(path).get("a", "Production") == seen("1", "1", "1")
    assert Memory(path).get("a", "Staging") is None
    path.write_text("{")
    with pytest.raises(StateWriteFailed, match="remove it to begin anew"):
        Memory(path)
