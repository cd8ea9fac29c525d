"""Has the replicas of both revisions record what they answer, and collects it."""

from __future__ import annotations

import time

import msgspec

from mlflow_deploy.serving.recorder import Order, Record, Reply
from mlflow_deploy.targets.base import Capability, Target
from mlflow_deploy.targets.base_records import DeploymentRecord

PATH = "/admin/recorder"
"""Address of the scoring server's recorder."""

_EVERY_SECONDS = 0.5
_MOST_RECORDS = 1000
_LEAST_SHARE = 1 / 1024

_decode = msgspec.msgpack.Decoder(Reply).decode


class Recording:
    """Recording on the replicas of one deployment.

    Under more load than can be read, a smaller share of the request ids is recorded, the same ones everywhere.

    Attributes:
        lost: records that were overwritten before they were read.
        oversized: answers that were too large to be recorded.
    """

    def __init__(self, target: Target) -> None:
        self.lost = 0
        self._target = target
        self._share = 1.0
        self._places: dict[tuple[int, str], Reply] = {}
        self._oversized: dict[str, tuple[int, int]] = {}
        self._next = 0.0

    @property
    def possible(self) -> bool:
        """Whether replicas of this target can record at all."""
        return Capability.RECORDING in self._target.capabilities

    @property
    def oversized(self) -> int:
        """Answers that were too large to be recorded, since the rollout began."""
        return sum(now - first for first, now in self._oversized.values())

    def due(self) -> bool:
        """Whether it is time to read again."""
        return time.monotonic() >= self._next

    def read(self, record: DeploymentRecord, *numbers: int) -> dict[int, list[Record]]:
        """What each of these revisions has recorded since it was last read; the first time, nothing yet."""
        found = {number: self._read(record, number) for number in numbers}
        if self._share > _LEAST_SHARE and max(map(len, found.values())) > _MOST_RECORDS:
            self._share /= 2
        self._next = time.monotonic() + _EVERY_SECONDS
        return found

    def stop(self, record: DeploymentRecord, *numbers: int) -> None:
        """Record no more."""
        order = msgspec.json.encode(Order(share=0.0))
        for number in numbers:
            self._target.ask(record, number, PATH, order)
        self._places.clear()

    def _read(self, record: DeploymentRecord, number: int) -> list[Record]:
        records: list[Record] = []
        order = Order(self._share, {reply.boot: reply.after for reply in self._places.values()})
        replies = self._target.ask(record, number, PATH, msgspec.json.encode(order))
        for name, body in replies.items():
            reply = _decode(body)
            records += reply.records
            self.lost += reply.lost
            first, _ = self._oversized.get(reply.boot, (reply.oversized, 0))
            self._oversized[reply.boot] = (first, reply.oversized)
            self._places[number, name] = reply
        return records
