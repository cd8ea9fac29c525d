"""Gate `smoke`: the server that would be deployed becomes ready and answers the input example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext

EXAMPLE = "example.json"
"""Document of the bundle with the example as a request, and the native model's answer."""

_SHOWN = 5


class SmokeGate(Gate):
    """Starts the bundle's own server in a process and asks it over HTTP."""

    name: ClassVar[str] = "smoke"
    settings_type: ClassVar[type[GateSettings]] = GateSettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        return context.served

    def check(self, context: GateContext) -> Verdict:
        bundle = context.bundle
        example = bundle.document(EXAMPLE)
        server = context.server(bundle)
        evidence: dict[str, Any] = {
            "format": bundle.manifest.format,
            "bundle": bundle.digest,
            "ready_seconds": round(server.ready_seconds, 2),
        }
        if not example:
            return failed("the model has no input example that it could be asked with", **evidence)
        answer = server.ask(msgspec.json.encode(example["request"]))
        evidence["answer"] = answer[:_SHOWN] if isinstance(answer, list) else answer
        wanted, found = _rows(example["predictions"]), _rows(answer)
        if found != wanted:
            return failed(f"{found} answers to {wanted} rows of the input example", **evidence)
        if not _whole(answer) and _whole(example["predictions"]):
            return failed("the answer to the input example has missing numbers", **evidence)
        return passed(
            f"{bundle.manifest.format} was ready in {server.ready_seconds:.1f} s and answered {found} rows",
            **evidence,
        )


def _rows(answer: Any) -> int:
    if isinstance(answer, dict):
        return max((len(each) for each in answer.values() if isinstance(each, list)), default=1)
    return len(answer) if isinstance(answer, list) else 1


def _whole(answer: Any) -> bool:
    """Without null, which is how NaN and infinities are written."""
    if isinstance(answer, dict):
        return all(_whole(each) for each in answer.values())
    if isinstance(answer, list):
        return all(_whole(each) for each in answer)
    return answer is not None
