"""Names and labels of everything that target `docker` makes on an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflow_deploy.images.labels import PREFIX

DEPLOYMENT = PREFIX + "deployment"
NAMESPACE = PREFIX + "namespace"
ROLE = PREFIX + "role"
"""What a thing is for: `record`, `address`, `lock`, `control`, `network`, `gateway`, `revision`, `files` or
`data`."""
REVISION = PREFIX + "revision"
REPLICA = PREFIX + "replica"
BUNDLE = PREFIX + "bundle"
RECORD = PREFIX + "record"
"""The deployment's record as JSON; on a container as it was when that was made."""
GENERATION = PREFIX + "generation"
"""Counts the records, and the words to a rollout, of a deployment; the highest holds."""
WORD = PREFIX + "word"
"""What another command said to the rollout that goes on."""
HOST = PREFIX + "host"
PORT = PREFIX + "port"
PUBLISHED = PREFIX + "published"
"""`yes` on the container that has the deployment's port."""
OWNER = PREFIX + "owner"
"""Which state folder a lock was taken from; its file lock tells whether the holder lives."""
HOLDER = PREFIX + "holder"
NONCE = PREFIX + "nonce"
ARCHIVE = PREFIX + "archive"
"""The namespace of a document that outlives its deployment; it has no other label that others look for."""
ARCHIVE_OF = PREFIX + "archive-of"
ARCHIVE_KEY = PREFIX + "archive-key"
DOCUMENT = PREFIX + "document"


@dataclass(frozen=True)
class Names:
    """Names and label filters within one namespace of an engine.

    Attributes:
        namespace: keeps the deployments of several teams, or test runs, on one engine apart; may be empty.
    """

    namespace: str

    def network(self, name: str) -> str:
        """The deployment's own network."""
        return f"{self._prefix}.{name}"

    def gateway(self, name: str) -> str:
        """The gateway's container, and the volume with its folder."""
        return f"{self._prefix}.{name}.gateway"

    def replica(self, name: str, revision: int, replica: int) -> str:
        """A revision's container."""
        return f"{self._prefix}.{name}.r{revision}-{replica}"

    def files(self, name: str, revision: int) -> str:
        """The volume with the files that a revision's settings name."""
        return f"{self._prefix}.{name}.r{revision}.files"

    def monitor(self, name: str) -> str:
        """The container that judges windows."""
        return f"{self._prefix}.{name}.monitor"

    def data(self, name: str) -> str:
        """The volume with what was captured, its labels and what the monitors found."""
        return f"{self._prefix}.{name}.data"

    def record(self, name: str, generation: int) -> str:
        """The volume whose label is the record."""
        return f"{self._prefix}.{name}.record.{generation:08d}"

    def control(self, name: str, generation: int) -> str:
        """The volume whose label is a word to the rollout that goes on."""
        return f"{self._prefix}.{name}.control.{generation:08d}"

    def lock(self, name: str) -> str:
        """The volume that exists while a command works on the deployment."""
        return f"{self._prefix}.{name}.lock"

    def archive(self, name: str, key: str, generation: int) -> str:
        """The volume whose label is a document that outlives the deployment."""
        return f"{self._prefix}.{name}.archive.{key}.{generation:08d}"

    def address(self, port: int) -> str:
        """The volume that reserves a port; the same for all namespaces, since the ports are."""
        return f"mlflow-deploy.port.{port}"

    def labels(self, name: str, role: str, **more: str) -> dict[str, str]:
        """Labels of a thing; `more` is given by the names of this module's constants in lower case."""
        constants = globals()
        own = {constants[key.upper()]: value for key, value in more.items()}
        return {DEPLOYMENT: name, NAMESPACE: self.namespace, ROLE: role, **own}

    def filters(self, name: str = "", role: str = "", revision: int = 0) -> dict[str, Any]:
        """The engine's filter for things of this namespace."""
        wanted = [f"{NAMESPACE}={self.namespace}"]
        wanted += [f"{DEPLOYMENT}={name}"] if name else []
        wanted += [f"{ROLE}={role}"] if role else []
        wanted += [f"{REVISION}={revision}"] if revision else []
        return {"label": wanted}

    @property
    def _prefix(self) -> str:
        return f"mlflow-deploy-{self.namespace}" if self.namespace else "mlflow-deploy"


def alias(revision: int, replica: int) -> str:
    """Host name of a revision's container in the deployment's network."""
    return f"r{revision}-{replica}"
