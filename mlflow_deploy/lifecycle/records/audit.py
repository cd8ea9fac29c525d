"""The audit: is the chain of a name's release records whole, and do bundles and MLflow's copies agree?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mlflow_deploy.bundle import read_bundle
from mlflow_deploy.config import state_home
from mlflow_deploy.errors import BundleError, DeployError
from mlflow_deploy.lifecycle.records.chain import HEAD, Head, documents
from mlflow_deploy.lifecycle.records.mlflow_copy import open_store, server_problem
from mlflow_deploy.lifecycle.records.outbox import flush, read_outbox
from mlflow_deploy.lifecycle.records.record import digest_of
from mlflow_deploy.targets.base import Target

_FLUSH_SECONDS = 60.0


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it was written.

    Attributes:
        record: number of the record that it is about, 0 for the whole chain.
        kind: changed, removed, reordered, replaced, head, bundle, copy or deployment.
        what: one sentence.
    """

    record: int
    kind: str
    what: str


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit of one name found.

    Attributes:
        records: how many records there are.
        bundles: how many bundles that they name were found and compared.
        copies: how many copies in MLflow were compared; None when MLflow was not asked.
        problems: what is not as it was written.
        notes: what could not be looked at, and why.
    """

    deployment: str
    target: str
    records: int
    bundles: int
    copies: int | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def audit(target: Target, name: str, *, mlflow: bool = True) -> Audit:
    """Look through the records of a name.

    Args:
        mlflow: also log what MLflow lacks, and compare its copies.

    Raises:
        DeployError: the archive cannot be read.
    """
    found = documents(target, name)
    contents, problems = _read(name, found)
    head = _head(target, name)
    problems += _links(head, contents, set(found))
    problems += _state(target, name, contents, max([head.number, *found]) if head else 0)
    compared, corrupt, missing = _bundles(contents)
    notes = [f"bundles that are no longer on this machine: {missing}"] if missing else []
    copies: int | None = None
    if mlflow:
        copies, differing, unseen = _copies(target, name, contents)
        problems += differing
        notes += unseen
    return Audit(
        deployment=name,
        target=target.name,
        records=len(found),
        bundles=compared,
        copies=copies,
        problems=tuple(sorted([*problems, *corrupt], key=lambda each: each.record)),
        notes=tuple(notes),
    )


def _read(name: str, found: Mapping[int, bytes]) -> tuple[dict[int, dict[str, Any]], list[Problem]]:
    """The records that are whole and in their place, and what is wrong with the others."""
    contents: dict[int, dict[str, Any]] = {}
    problems = []
    for number, document in found.items():
        try:
            content = msgspec.json.decode(document, type=dict[str, Any])
        except msgspec.DecodeError as error:
            problems.append(_problem(number, "changed", f"it cannot be read: {error}"))
            continue
        if digest_of(content) != content.get("hash"):
            problems.append(_problem(number, "changed", "its content does not give its hash"))
        elif content.get("number") != number:
            problems.append(
                _problem(number, "reordered", f"in its place lies record {content.get('number')}")
            )
        elif content.get("deployment") != name:
            problems.append(_problem(number, "reordered", f"it belongs to {content.get('deployment')!r}"))
        else:
            contents[number] = content
    return contents, problems


def _head(target: Target, name: str) -> Head | None:
    """The head as it is, None when it cannot be read; an audit repairs nothing."""
    found = target.read_archive(name, HEAD).get(HEAD)
    try:
        return msgspec.json.decode(found, type=Head) if found else Head()
    except msgspec.DecodeError:
        return None


def _links(
    head: Head | None, contents: Mapping[int, Mapping[str, Any]], present: set[int]
) -> Iterator[Problem]:
    """Records that are missing, and those whose successor was made after another one."""
    if head is None:
        yield Problem(record=0, kind="head", what="the head of the chain cannot be read")
        head = Head()
    if present and not head.number:
        yield Problem(record=0, kind="head", what="the head is missing: records may be missing at the end")
    for number in head.rebuilt:
        what = "the head of the chain was lost or did not fit after it: records may have been removed there"
        yield _problem(number, "head", what)
    for number in range(1, max([head.number, *present]) + 1):
        if number not in present:
            yield _problem(number, "removed", "it is missing")
    for number, content in contents.items():
        after = contents.get(number + 1)
        wanted = after["previous"] if after else head.hash if head.number == number else None
        if wanted is not None and wanted != content["hash"]:
            by = f"record {number + 1}" if after else "the head of the chain"
            yield _problem(
                number, "replaced", f"{by} follows another one, {wanted}, and not {content['hash']}"
            )
    if 1 in contents and contents[1]["previous"]:
        yield _problem(1, "removed", "the chain began before it")


def _state(
    target: Target, name: str, contents: Mapping[int, Mapping[str, Any]], number: int
) -> Iterator[Problem]:
    """Whether the deployment serves what its last record says."""
    record = target.read_record(name)
    if record is not None and (record.phase != "ready" or record.rollout):
        return
    last = contents.get(number)
    if last is None:
        return
    serves = {str(number): share for number, share in record.weights.items()} if record else {}
    recorded = dict(last["after"])
    if serves != recorded and (record is None or record.created_at == last["life"]):
        yield _problem(
            last["number"], "deployment", f"it says {recorded}, but the deployment serves {serves}"
        )


def _bundles(contents: Mapping[int, Mapping[str, Any]]) -> tuple[int, list[Problem], int]:
    """How many bundles were compared, what is wrong with them, and how many are gone."""
    problems, compared, missing = [], 0, 0
    first = {
        content["bundle"]: number for number, content in reversed(list(contents.items())) if content["bundle"]
    }
    for digest, number in first.items():
        folder = state_home() / "bundles" / digest
        if not folder.is_dir():
            missing += 1
            continue
        compared += 1
        try:
            bundle = read_bundle(folder)
        except BundleError as error:
            problems.append(_problem(number, "bundle", error.text))
            continue
        said = contents[number]["model"]["digest"]
        if said and said != bundle.manifest.model.digest:
            what = f"it says that the model is {said}, its bundle {bundle.manifest.model.digest}"
            problems.append(_problem(number, "bundle", what))
    return compared, problems, missing


def _copies(
    target: Target, name: str, contents: Mapping[int, Mapping[str, Any]]
) -> tuple[int | None, list[Problem], list[str]]:
    """How many copies were compared, which differ, and what could not be seen."""
    import mlflow

    if why := server_problem():
        return None, [], [f"MLflow's copies were not compared: {why}"]
    left = flush(target, name, seconds=_FLUSH_SECONDS)
    logged = read_outbox(target, name).runs
    try:
        runs = open_store(target.name, name).runs()
    except mlflow.MlflowException as error:
        return None, [], [f"MLflow's copies were not compared: {error.message}"]
    problems = []
    for number in sorted({*contents, *runs}):
        for run_id, document in runs.get(number, []):
            if number not in contents:
                what = f"MLflow has it in run {run_id}, the target does not have it so"
                problems.append(_problem(number, "copy", what))
            elif differing := _differing(contents[number], document):
                what = f"its copy in MLflow, run {run_id}, differs: {differing}"
                problems.append(_problem(number, "copy", what))
        if number not in runs and number in logged:
            what = f"its copy in MLflow, run {logged[number]}, is gone"
            problems.append(_problem(number, "copy", what))
    return sum(map(len, runs.values())), problems, [left.text] if left.left else []


def _differing(content: Mapping[str, Any], document: bytes | None) -> str:
    """Which keys of a copy are not as in the record; the empty string when all are."""
    if document is None:
        return "it holds no record"
    try:
        copy = msgspec.json.decode(document, type=dict[str, Any])
    except msgspec.DecodeError as error:
        return f"it cannot be read: {error}"
    return ", ".join(sorted(key for key in {*content, *copy} if content.get(key) != copy.get(key)))


def _problem(number: int, kind: str, what: str) -> Problem:
    return Problem(record=number, kind=kind, what=what)


def audited_names(target: Target) -> tuple[list[str], str]:
    """Names on a target that have release records, and why they are not known when it does not answer."""
    try:
        return [name for name in target.archive_names() if documents(target, name)], ""
    except DeployError as error:
        return [], error.text
