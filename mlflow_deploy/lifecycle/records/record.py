"""The release record, its canonical form, and the digest that links it with the one before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from mlflow_deploy.targets.base_records import RolloutRecord, TrafficPoint

SCHEMA = 1
PREFIX = "release-"


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The model version that a release is about.

    Attributes:
        asked: the URI that the user gave.
        uri: the fixed version that it meant.
        name: registered model, or an empty string.
        version: its version, or an empty string.
        model_id: MLflow's `m-...` id, or an empty string.
        run_id: run that logged it, or an empty string.
        digest: SHA-256 over the model folder's files; empty when its bundle is not on this machine.
    """

    asked: str = ""
    uri: str = ""
    name: str = ""
    version: str = ""
    model_id: str = ""
    run_id: str = ""
    digest: str = ""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a revision in the timeline was: its model version and the digest of its bundle."""

    model: str
    bundle: str = ""


class ReleaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished change of a deployment; never changed once written.

    Attributes:
        number: counts from 1 under a name, over all deployments that ever had it.
        previous: `hash` of the record before it; empty for the first.
        hash: SHA-256 over the canonical form of all else.
        life: `created_at` of the deployment, which tells it from an earlier one of the same name.
        change: number of the change in the deployment's own history; 0 for a deletion.
        outcome: `done` or `rolled_back`.
        began_at: UTC time, ISO 8601, when a candidate was announced; the same as `at` where none was.
        at: UTC time at which the change was decided.
        recorded_at: UTC time at which this record was written.
        late: why it was not written by the command that made the change; empty when it was.
        requester: who ran the command.
        approvers: who had approved the version, from the evidence.
        revision: the revision that it is about, 0 for several.
        bundle: digest of that revision's bundle.
        image: name of the image that it runs from; empty without images.
        parity: the parity report in the bundle, None without one.
        evidence: what came along with the request, such as the report of the gates.
        before, after: shares of the traffic in percent.
        timeline: who got the requests from when on, the steps of a rollout included.
        served: revision -> what it was, for every revision in the timeline.
        rollout: the rollout's steps with the numbers behind each decision, None where there was none.
        environment: versions and machine of the command that wrote the record.
    """

    schema: int = SCHEMA
    number: int = 0
    previous: str = ""
    hash: str = ""
    deployment: str
    target: str
    life: str
    change: int
    action: str
    outcome: str
    reason: str = ""
    began_at: str
    at: str
    recorded_at: str
    late: str = ""
    requester: str
    approvers: tuple[str, ...] = ()
    revision: int = 0
    model: ModelFacts = ModelFacts()
    bundle: str = ""
    image: str = ""
    format: str = ""
    parity: Any = None
    evidence: dict[str, Any] = {}
    before: dict[int, int] = {}
    after: dict[int, int] = {}
    timeline: tuple[TrafficPoint, ...] = ()
    served: dict[int, Served] = {}
    rollout: RolloutRecord | None = None
    environment: dict[str, str] = {}


def key_of(number: int) -> str:
    """Key of a record in the archive."""
    return f"{PREFIX}{number:08d}"


def number_of(key: str) -> int | None:
    """Number of the record under a key of the archive; None for other documents."""
    digits = key.removeprefix(PREFIX)
    return int(digits) if key.startswith(PREFIX) and digits.isdecimal() else None


def canonical(content: Mapping[str, Any]) -> bytes:
    """The form that is hashed: JSON with sorted keys, no spaces, UTF-8, without the key `hash`."""
    bare = {key: value for key, value in content.items() if key != "hash"}
    return json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(content: Mapping[str, Any]) -> str:
    """`sha256-<hex>` over the canonical form; it covers the digest of the record before through `previous`."""
    return "sha256-" + hashlib.sha256(canonical(content)).hexdigest()


def to_content(record: ReleaseRecord) -> dict[str, Any]:
    """A record as the plain JSON values that are hashed and written."""
    content: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
    return content


def encode(content: Mapping[str, Any]) -> bytes:
    """The file of a record: readable JSON, of which the hash covers the values and not the spaces."""
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def decode(document: bytes) -> ReleaseRecord:
    """The record in a document.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return msgspec.json.decode(document, type=ReleaseRecord)
