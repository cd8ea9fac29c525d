"""Gate `signature`: the version says what it takes, shows it by an example, and callers need not change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mlflow_deploy.bundle import SIGNATURE
from mlflow_deploy.lifecycle.gates.base import Gate, GateSettings, Verdict, failed, passed

if TYPE_CHECKING:
    from mlflow_deploy.lifecycle.gates.context import GateContext


class SignatureSettings(GateSettings):
    """What the policy may say of gate `signature`."""

    example: bool = True
    """Whether the version must have an input example."""
    compatible: bool = True
    """Whether callers of the version that is deployed must be able to go on as they do."""


class SignatureGate(Gate):
    """Reads MLmodel and the example; the model is not loaded."""

    name: ClassVar[str] = "signature"
    loads_model: ClassVar[bool] = False
    settings_type: ClassVar[type[GateSettings]] = SignatureSettings
    settings: SignatureSettings

    def rests_on(self, context: GateContext) -> Mapping[str, Any] | None:
        return {"deployed": context.record.stable.bundle if context.record else ""}

    def check(self, context: GateContext) -> Verdict:
        signature = context.signature
        if not signature or not signature.get("inputs"):
            return failed("the model has no signature: log it with signature= or input_example=")
        evidence: dict[str, Any] = {"inputs": signature["inputs"], "outputs": signature.get("outputs")}
        if not signature.get("outputs"):
            return failed("the signature does not say what the model answers", **evidence)
        if problem := self._example_problem(context):
            return failed(problem, **evidence)
        said = f"{len(signature['inputs'])} inputs" + (
            ", an example that fits" if self.settings.example else ""
        )
        deployed = self._deployed(context)
        if not self.settings.compatible or deployed is None:
            return passed(said, **evidence)
        differences = list(incompatible(deployed, signature))
        evidence["deployed"] = {key: deployed.get(key) for key in ("inputs", "outputs")}
        evidence["differences"] = differences
        if differences:
            return failed(
                f"callers of the deployed version would break: {'; '.join(differences)}", **evidence
            )
        return passed(f"{said}, compatible with the deployed version", **evidence)

    def _example_problem(self, context: GateContext) -> str:
        """Why the example is missing or does not fit the signature; an empty string when all is well."""
        meta = context.meta
        if not meta.saved_input_example_info:
            return (
                "the model has no input example: log it with input_example=" if self.settings.example else ""
            )
        from mlflow.exceptions import MlflowException
        from mlflow.models.utils import validate_schema

        from mlflow_deploy.conversion.native import quiet

        try:
            with quiet():
                example = meta.load_input_example(str(context.folder))
                validate_schema(example, meta.get_input_schema())
        except (MlflowException, OSError, ValueError, TypeError, KeyError) as error:
            return f"the input example does not fit the signature: {error}"
        return ""

    def _deployed(self, context: GateContext) -> dict[str, Any] | None:
        """Signature of what is deployed now."""
        if context.record is None:
            return None
        document: dict[str, Any] | None = context.bundle_of(context.record.stable.resolved_uri).document(
            SIGNATURE
        )
        return document


def incompatible(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What callers of the old signature would notice of the new one, as sentences.

    Inputs that the new one no longer names are no difference: MLflow ignores what a model does not ask for.
    """
    before = {_name(each): each for each in old.get("inputs") or []}
    for each in new.get("inputs") or []:
        name = _name(each)
        if name not in before:
            if each.get("required", True):
                yield f"input {name!r} is new and required"
        elif _type(each) != _type(before[name]):
            yield f"input {name!r} was {_type(before[name])}, is {_type(each)}"
        elif each.get("required", True) and not before[name].get("required", True):
            yield f"input {name!r} was optional, is required"
    answers = [(_name(each), _type(each)) for each in old.get("outputs") or []]
    answered = [(_name(each), _type(each)) for each in new.get("outputs") or []]
    if answers and answers != answered:
        yield f"the answer was {_listed(answers)}, is {_listed(answered)}"
    for each in new.get("params") or []:
        if each.get("default") is None and _name(each) not in {_name(p) for p in old.get("params") or []}:
            yield f"parameter {_name(each)!r} is new and has no default"


def _name(part: dict[str, Any]) -> str:
    return str(part.get("name") or "")


def _type(part: dict[str, Any]) -> str:
    spec = part.get("tensor-spec")
    if spec:
        return f"{spec['dtype']}{list(spec['shape'][1:])}"
    return str(part.get("type")) if "properties" not in part else f"{part.get('type')} {part['properties']}"


def _listed(parts: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name}: {kind}" if name else kind for name, kind in parts)
