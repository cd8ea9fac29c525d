"""What an audit of a model's files found: findings with their rules, and the report."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

RULES: dict[str, tuple[str, str]] = {
    "pickle-global": (
        "critical",
        "Do not load it. If you know where it comes from, save the model again with library classes only",
    ),
    "pickle-unreadable": ("critical", "Do not load it; save the model again with the library that made it"),
    "pickle-trailing-data": ("high", "Do not load it; save the model again with the library that made it"),
    "archive-unreadable": ("high", "Make the archive again; it is not proven to be harmless"),
    "archive-too-large": ("high", "Split or unpack it, or audit its parts by themselves"),
    "archive-too-deep": ("high", "Unpack it once and log the content itself"),
    "compression-unread": ("high", "Compress it with zlib, gzip, bz2 or xz, or not at all"),
    "unsafe-path": ("critical", "Do not unpack it; make it again from the folder it belongs to"),
    "symlink": ("high", "Put the file itself there"),
    "special-file": ("high", "Remove it; a model has only files and folders"),
    "duplicate-member": ("high", "Make the archive again; readers do not agree on which of the two counts"),
    "file-unreadable": ("high", "Make it readable for who audits it, and audit again"),
    "keras-lambda": ("critical", "Write the layer as a class of its own package, and save the model again"),
    "keras-foreign-code": ("critical", "Use layers of Keras, or review the code and accept this rule"),
    "keras-unreadable": ("high", "Save the model again, or install h5py so that HDF5 files can be read"),
    "hdf5-external": ("critical", "Save the weights in the file itself"),
    "tensorflow-operator": ("critical", "Save the model without operators that reach files or Python"),
    "onnx-external-data": ("critical", "Save the tensors in the model folder, with relative paths"),
    "onnx-custom-operator": ("high", "Review the library that brings it, then accept this rule"),
    "onnx-unreadable": ("high", "Export the model again"),
    "requirement-source": ("high", "Publish the package on your index and require it by name and version"),
    "requirement-index": ("high", "Leave the choice of the index to the machine that installs"),
    "requirement-unreadable": ("high", "Write it as NAME==VERSION"),
    "model-code": ("high", "Review that code, then accept this rule"),
    "model-loader": ("high", "Review that module, then accept this rule"),
    "model-trust": ("high", "Review that class, then accept this rule"),
    "model-path": ("critical", "Log the model again; its files belong into its folder"),
    "mlmodel-unreadable": ("high", "Log the model again"),
    "code-file": ("high", "Review it, then accept this rule; or log the model without it"),
}
"""Rule -> its severity and what to do."""


@dataclass(frozen=True)
class Finding:
    """One reason not to trust a model.

    Attributes:
        path: file inside the audited folder; members of archives follow after `!/`, one for each archive.
        severity: `critical` where loading or unpacking would act, `high` where harmlessness is not proven.
        rule: stable identifier, a key of `RULES`.
        what: what is there.
        why: why that is a danger.
        hint: what to do.
        accepted: the caller has accepted this rule.
    """

    path: str
    severity: str
    rule: str
    what: str
    why: str
    hint: str
    accepted: bool = False


@dataclass(frozen=True)
class AuditReport:
    """What an audit of a file or folder found.

    Attributes:
        path: what was audited.
        flavors: whose lists of allowed globals were used.
        files: files and members of archives that were looked at.
        pickles: how many of them are pickles.
        findings: sorted by path, accepted ones included.
    """

    path: str
    flavors: tuple[str, ...]
    files: int
    pickles: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Nothing was found that was not accepted."""
        return all(finding.accepted for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, `ok` included."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2)
