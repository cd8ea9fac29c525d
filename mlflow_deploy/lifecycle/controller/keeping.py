"""What the controller keeps for the records: who moved what, and release records that MLflow lacks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from mlflow_deploy.errors import DeployError, ModelNotFound
from mlflow_deploy.lifecycle.hints import Hint
from mlflow_deploy.lifecycle.records.moves_of_model import moves_of
from mlflow_deploy.lifecycle.records.outbox import flush
from mlflow_deploy.targets import open_target

_EVERY_SECONDS = 30.0
"""How often release records are looked through for some that MLflow does not have."""


def keep_moves(hints: Sequence[Hint]) -> None:
    """Keep what was moved, with those who did it, before anything is moved in answer.

    Raises:
        DeployError: the registry cannot be read, or it cannot be kept.
    """
    for model in dict.fromkeys(each.model for each in hints):
        try:
            moves_of(model, hints=[each for each in hints if each.model == model])
        except ModelNotFound:
            # Deleted or renamed; what is done about that follows from the registry.
            continue


class Records:
    """Tells MLflow of releases that it does not know yet."""

    def __init__(self) -> None:
        self._next = 0.0
        self.waiting = 0
        """Release records that MLflow did not have at the last attempt."""

    def flush(self, targets: Iterable[str]) -> None:
        """Log what waits on these targets, each half a minute; the first that stays ends the attempt."""
        if time.monotonic() < self._next:
            return
        self.waiting, tired = 0, False
        for each in sorted(set(targets)):
            try:
                target = open_target(each)
                for name in target.archive_names():
                    done = flush(target, name, seconds=0 if tired else None)
                    self.waiting += done.left
                    tired = tired or bool(done.left)
            except DeployError:
                # What is wrong with a target is told where its deployments are looked at.
                continue
        self._next = time.monotonic() + _EVERY_SECONDS
