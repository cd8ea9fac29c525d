"""The chain of a name's release records: its head, appending to it, and reading it.

In the archive of a name are `release-00000001`, ..., and `head`, which says how far the chain goes, so that
records that were removed from its end are missed.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mlflow_deploy.errors import StateWriteFailed
from mlflow_deploy.lifecycle.records.record import (
    ReleaseRecord,
    decode,
    digest_of,
    encode,
    key_of,
    number_of,
    to_content,
)
from mlflow_deploy.targets.base import Target

HEAD = "head"


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far a chain goes.

    Attributes:
        number: of the last record.
        hash: of the last record.
        life: `created_at` of the deployment that the last record is about.
        change: the last change of that deployment's own history that is recorded.
        rebuilt: records after which the head was lost or did not fit, and was made again.
    """

    number: int = 0
    hash: str = ""
    life: str = ""
    change: int = 0
    rebuilt: tuple[int, ...] = ()


def read_head(target: Target, name: str) -> Head:
    """The head of a chain; one that lags behind what a killed command wrote last is put right.

    A head that is lost or does not fit is made again from the records, and says so for good.
    """
    found = target.read_archive(name, HEAD).get(HEAD)
    try:
        head = msgspec.json.decode(found, type=Head) if found else None
    except msgspec.DecodeError:
        head = None
    if head and not target.read_archive(name, key_of(head.number + 1)):
        return head
    records = documents(target, name)
    if not records:
        return head or Head()
    repaired = _repaired(head, records)
    target.write_archive(name, HEAD, msgspec.json.encode(repaired))
    return repaired


def _repaired(head: Head | None, records: Mapping[int, bytes]) -> Head:
    """The head after the records that lie beyond it."""
    # The very first record may have been written by a command that was killed before it wrote the head.
    lost = head is None and max(records) > 1
    new = head or Head()
    for number in sorted(each for each in records if each > new.number):
        try:
            record = decode(records[number])
        except msgspec.DecodeError:
            new, lost = msgspec.structs.replace(new, number=number), True
            continue
        lost = lost or record.number != new.number + 1 or record.previous != new.hash
        new = msgspec.structs.replace(_after(record, new), number=number)
    return msgspec.structs.replace(new, rebuilt=(*new.rebuilt, new.number)) if lost else new


def append(target: Target, name: str, draft: ReleaseRecord) -> ReleaseRecord:
    """Write a record to the end of a chain; the caller holds the name's lock.

    The record is written aside, flushed and renamed before the head is, so that a kill leaves a head that
    `read_head` puts right.

    Args:
        draft: the record without its place in the chain.

    Raises:
        StateWriteFailed: the archive cannot be written.
    """
    head = read_head(target, name)
    placed = msgspec.structs.replace(draft, number=head.number + 1, previous=head.hash)
    record = msgspec.structs.replace(placed, hash=digest_of(to_content(placed)))
    target.write_archive(name, key_of(record.number), encode(to_content(record)))
    target.write_archive(name, HEAD, msgspec.json.encode(_after(record, head)))
    return record


def documents(target: Target, name: str) -> dict[int, bytes]:
    """All records of a name as they were written, by the number that their place says."""
    found = target.read_archive(name)
    numbered = {number_of(key): document for key, document in found.items()}
    return {number: numbered[number] for number in sorted(filter(None, numbered))}


def read_chain(target: Target, name: str) -> list[ReleaseRecord]:
    """All records of a name, the oldest first.

    Raises:
        StateWriteFailed: one of them cannot be read; `mlflow-deploy audit verify` tells more.
    """
    records = []
    for number, document in documents(target, name).items():
        try:
            records.append(decode(document))
        except msgspec.DecodeError as error:
            raise _unreadable(name, f"record {number}", error) from error
    return records


def _after(record: ReleaseRecord, head: Head) -> Head:
    # A deletion, or a creation that failed, ends a life: the next one may begin within the same second.
    life = record.life if record.change else ""
    return msgspec.structs.replace(
        head, number=record.number, hash=record.hash, life=life, change=record.change
    )


def _unreadable(name: str, what: str, error: Exception) -> StateWriteFailed:
    return StateWriteFailed(
        f"the release records of {name}",
        f"{what} cannot be read: {error}; `mlflow-deploy audit verify {name}` tells more",
    )
