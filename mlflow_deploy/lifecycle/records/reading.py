"""Single release records of a name, by revision or number."""

from __future__ import annotations

from mlflow_deploy.errors import ReleaseNotFound, RevisionNotFound
from mlflow_deploy.lifecycle.records.chain import read_chain
from mlflow_deploy.lifecycle.records.record import ReleaseRecord
from mlflow_deploy.targets.base import Target


def released(
    target: Target, name: str, *, revision: int | None = None, record: int | None = None
) -> ReleaseRecord:
    """The last record of a name, of one of its revisions, or the one of a number.

    Raises:
        ReleaseNotFound: there is none of this number, or none at all.
        RevisionNotFound: no record is about this revision.
    """
    records = read_chain(target, name)
    if not records:
        raise ReleaseNotFound(name, record, 0)
    if record is not None:
        for each in records:
            if each.number == record:
                return each
        raise ReleaseNotFound(name, record, records[-1].number)
    if revision is not None:
        about = [each for each in records if each.revision == revision]
        if not about:
            raise RevisionNotFound(name, revision, {each.revision for each in records if each.revision})
        return about[-1]
    return records[-1]
