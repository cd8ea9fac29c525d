"""The chain of release records: how it is written, and that every way to falsify it is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mlflow_deploy.lifecycle.records.audit import audit
from mlflow_deploy.lifecycle.records.chain import HEAD, append, documents, read_chain, read_head
from mlflow_deploy.lifecycle.records.record import (
    ReleaseRecord,
    decode,
    digest_of,
    encode,
    key_of,
    to_content,
)
from mlflow_deploy.targets.base_records import TrafficPoint
from mlflow_deploy.targets.memory import MemoryTarget


def draft(hour: int, **more: Any) -> ReleaseRecord:
    """A change of d1 in an hour of a day, after which the revision of that number has all traffic."""
    at = f"2026-03-03T{hour:02d}:00:00+00:00"
    told: dict[str, Any] = {
        "deployment": "d1",
        "target": "memory",
        "life": "2026-03-03T00:00:00+00:00",
        "change": hour,
        "action": "update",
        "outcome": "done",
        "began_at": at,
        "at": at,
        "recorded_at": at,
        "requester": "ada",
        "revision": hour,
        "after": {hour: 100},
        "timeline": (TrafficPoint(at=at, weights={hour: 100}),),
    }
    return ReleaseRecord(**{**told, **more})


@pytest.fixture
def chain(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    """A name whose deployment came and went in five records."""
    monkeypatch.setenv("MLFLOW_DEPLOY_HOME", str(tmp_path))
    target = MemoryTarget()
    for hour in range(1, 5):
        append(target, "d1", draft(hour))
    append(target, "d1", draft(5, action="delete", change=0, after={}))
    return target


def named(target: MemoryTarget) -> set[tuple[int, str]]:
    """What an audit names: the record and the kind of each problem."""
    return {(each.record, each.kind) for each in audit(target, "d1", mlflow=False).problems}


def test_each_record_follows_the_one_before_it(chain: MemoryTarget) -> None:
    records = read_chain(chain, "d1")
    assert [each.number for each in records] == [1, 2, 3, 4, 5]
    assert [each.previous for each in records] == ["", *(each.hash for each in records[:-1])]
    assert all(each.hash == digest_of(to_content(each)) for each in records)
    found = audit(chain, "d1", mlflow=False)
    assert (found.ok, found.records, found.copies) == (True, 5, None)


def test_the_hash_is_over_sorted_json_without_spaces_as_any_tool_can_make_it() -> None:
    import hashlib
    import json

    content = to_content(draft(1, reason="größer"))
    bare = {key: value for key, value in content.items() if key != "hash"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest_of(content) == "sha256-" + hashlib.sha256(text.encode()).hexdigest()
    assert decode(encode(content)) == draft(1, reason="größer")


def changed(number: int, *, hashed: bool, **more: Any) -> Callable[[MemoryTarget], None]:
    def change(target: MemoryTarget) -> None:
        content = msgspec.json.decode(documents(target, "d1")[number]) | more
        content["hash"] = digest_of(content) if hashed else content["hash"]
        target.write_archive("d1", key_of(number), encode(content))

    return change


def removed(*keys: str) -> Callable[[MemoryTarget], None]:
    def remove(target: MemoryTarget) -> None:
        for key in keys:
            del target._archive["d1"][key]

    return remove


def swapped(target: MemoryTarget) -> None:
    kept = target._archive["d1"]
    kept[key_of(2)], kept[key_of(3)] = kept[key_of(3)], kept[key_of(2)]


def moved_up(target: MemoryTarget) -> None:
    kept = target._archive["d1"]
    for number in (2, 3, 4):
        kept[key_of(number)] = kept[key_of(number + 1)]
    del kept[key_of(5)]


def cut_off(target: MemoryTarget) -> None:
    """Records 4 and 5 are removed, and the head is made to fit."""
    removed(key_of(4), key_of(5), HEAD)(target)
    read_head(target, "d1")


@pytest.mark.parametrize(
    ("falsify", "expected"),
    [
        (changed(3, hashed=False, requester="eve"), {(3, "changed")}),
        (changed(3, hashed=True, requester="eve"), {(3, "replaced")}),
        (changed(5, hashed=True, requester="eve"), {(5, "replaced")}),
        (lambda target: target.write_archive("d1", key_of(2), b"{"), {(2, "changed")}),
        (removed(key_of(2)), {(2, "removed")}),
        (removed(key_of(1)), {(1, "removed")}),
        (removed(key_of(5)), {(5, "removed")}),
        (removed(key_of(2), key_of(3)), {(2, "removed"), (3, "removed")}),
        (swapped, {(2, "reordered"), (3, "reordered")}),
        (moved_up, {(2, "reordered"), (3, "reordered"), (4, "reordered"), (5, "removed")}),
        (cut_off, {(3, "head"), (3, "deployment")}),
        (changed(2, hashed=True, deployment="d2"), {(2, "reordered")}),
    ],
    ids=[
        "changed", "replaced", "last replaced", "unreadable", "removed", "first removed", "last removed",
        "two removed", "swapped", "moved up", "cut off", "of another",
    ],
)  # fmt: skip
def test_what_was_falsified_is_named(
    chain: MemoryTarget, falsify: Callable[[MemoryTarget], None], expected: set[tuple[int, str]]
) -> None:
    falsify(chain)
    assert named(chain) == expected
    # Whoever comes next goes on after it, and hides nothing.
    before = set(documents(chain, "d1"))
    append(chain, "d1", draft(6, change=1, life="2026-03-04T00:00:00+00:00", after={}))
    assert len(set(documents(chain, "d1")) - before) == 1
    assert expected - {(3, "deployment")} <= named(chain)


def test_a_kill_between_record_and_head_is_put_right(chain: MemoryTarget) -> None:
    head = chain.read_archive("d1", HEAD)[HEAD]
    append(chain, "d1", draft(6))
    chain.write_archive("d1", HEAD, head)
    assert read_head(chain, "d1").number == 6
    assert append(chain, "d1", draft(7, after={})).number == 7
    assert audit(chain, "d1", mlflow=False).ok


def test_a_kill_after_the_very_first_record_is_put_right() -> None:
    target = MemoryTarget()
    append(target, "d1", draft(1, after={}))
    del target._archive["d1"][HEAD]
    assert append(target, "d1", draft(2, after={})).number == 2
    assert audit(target, "d1", mlflow=False).ok


def test_a_deployment_that_serves_something_else_is_named(chain: MemoryTarget) -> None:
    append(chain, "d1", draft(6))
    assert named(chain) == {(6, "deployment")}
