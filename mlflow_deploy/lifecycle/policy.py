"""The policy file `lifecycle.yaml`: by model, the stages of a version and what each of them asks and does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlflow_deploy.config import DeploymentSpec, check_name, parse_spec
from mlflow_deploy.errors import ConfigError, nearest

FILE = "lifecycle.yaml"
"""Where the policy is looked for when no path is given: in the working folder."""

VARIABLE = "MLFLOW_DEPLOY_POLICY"
"""Environment variable with the path of the policy file."""

ClassicStage: TypeAlias = Literal["None", "Staging", "Production", "Archived"]
Gates: TypeAlias = dict[str, dict[str, Any]]

_ALIASES = {"Staging": "challenger", "Production": "champion"}
_CLASSIC = ("Staging", "Production", "Archived")
_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
_DATASET = "validation"
_NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"

Parsed = TypeVar("Parsed", bound=BaseModel)


class DatasetPolicy(BaseModel):
    """Rows with known answers, which metric, champion and fairness gates measure on."""

    model_config = _CONFIG

    path: str = ""
    """Parquet or CSV file, or a URI that MLflow can fetch; unset = the validation rows of the version's run."""
    label: str = ""
    """Column with the true answers; unset = the one column that the model's signature does not name."""
    prediction: str = ""
    """Column of the answer that is judged, for models that answer several."""


class ApprovalPolicy(BaseModel):
    """Whose word a version needs."""

    model_config = _CONFIG

    needed: int = Field(default=0, ge=0, le=20)
    """People who must have approved."""
    by: tuple[str, ...] = ()
    """People whose approval counts; unset = anyone's."""
    allow_requester: bool = True
    """Whether the approval of the person who promotes counts."""


class StagePolicy(BaseModel):
    """One stage of a model's path: what it asks of a version, and what is deployed when one arrives."""

    model_config = _CONFIG

    name: str = Field(pattern=_NAME)
    """Its name, such as Staging or Production."""
    classic_stage: ClassicStage = "None"
    """MLflow's own stage that goes with it; unset = the one of the same name, or none."""
    alias: str = ""
    """Alias that the version in this stage has; unset = champion for Production, challenger for Staging."""
    archive_existing: bool = True
    """Whether the versions that were in the classic stage are archived."""
    prepare: bool = True
    """Whether the controller converts versions that may come next, and runs gates on them, before they are
    promoted; only where gate `security` is among the gates."""
    put_back: bool = False
    """Whether the controller moves stage and alias back when a version is refused."""
    gates: Gates = {}
    """Gates that a version must pass, each with its settings."""
    approvals: ApprovalPolicy = ApprovalPolicy()
    """Whose word a version needs."""
    target: str = "local"
    """Where its deployment runs."""
    deployment: str = ""
    """Name of its deployment; `{model}` stands for the model's name; unset = nothing is deployed."""
    strategy: str = ""
    """How the traffic moves to the version; unset = as `config` or the deployment says."""
    config: dict[str, Any] = {}
    """Settings of the deployment, as `-C` takes them."""
    monitors: tuple[Literal["drift", "performance"], ...] | None = None
    """Monitors of the deployment, the same as monitor.kinds in `config`; unset = as `config` or the deployment
    says."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        """What follows from the name, and the short forms of gates and approvals."""
        if not isinstance(value, Mapping):
            return value
        name = str(value.get("name", ""))
        filled = {"alias": _ALIASES.get(name, ""), **value}
        if name in _CLASSIC:
            filled.setdefault("classic_stage", name)
        gates = filled.get("gates", {})
        if isinstance(gates, list | tuple):
            filled["gates"] = {str(gate): {} for gate in gates}
        elif isinstance(gates, Mapping):
            filled["gates"] = {str(gate): {} if found is None else found for gate, found in gates.items()}
        approvals = filled.get("approvals")
        if isinstance(approvals, int) and not isinstance(approvals, bool):
            filled["approvals"] = {"needed": approvals}
        return filled

    @field_validator("alias")
    @classmethod
    def _no_version_number(cls, value: str) -> str:
        if value.lower() == "latest" or (value[:1] in "vV" and value[1:].isdigit()):
            raise ValueError(f"MLflow reserves the alias {value!r}")
        return value

    @model_validator(mode="after")
    def _add_approval(self) -> Self:
        """Approvals are a gate like all others."""
        if self.approvals.needed and "approval" not in self.gates:
            self.gates["approval"] = {}
        parse_spec(self.settings)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the deployment, strategy and monitors included, as `release.update` takes them."""
        given: dict[str, Any] = {"strategy": self.strategy} if self.strategy else {}
        if self.monitors is not None:
            given["monitor.kinds"] = list(self.monitors)
        return {**self.config, **given}

    def spec(self, base: DeploymentSpec | None = None) -> DeploymentSpec:
        """The settings as a spec, over those in force."""
        return parse_spec(self.settings, base=base)


def _default_stages() -> tuple[StagePolicy, ...]:
    first: Gates = {"security": {}, "signature": {}}
    return (
        StagePolicy(name="Staging", classic_stage="Staging", alias="challenger", gates=dict(first)),
        StagePolicy(
            name="Production",
            classic_stage="Production",
            alias="champion",
            gates={**first, "smoke": {}, "parity": {}},
            deployment="{model}",
        ),
        StagePolicy(name="Archived", classic_stage="Archived"),
    )


class ModelPolicy(BaseModel):
    """The path of one model's versions."""

    model_config = _CONFIG

    name: str = ""
    """The registered model; it need not be written, since the policy is found by it."""
    stages: tuple[StagePolicy, ...] = Field(default_factory=_default_stages)
    """The stages in order."""
    datasets: dict[str, DatasetPolicy] = {}
    """Rows to measure on, by name; `validation` is always there, as the rows of the version's run."""
    strict_path: bool = False
    """Whether a version must have passed the stage before."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what in ("name", "alias", "classic_stage"):
            found = [getattr(stage, what) for stage in self.stages]
            twice = {each for each in found if each not in ("", "None") and found.count(each) > 1}
            if twice:
                raise ValueError(f"two stages have the {what} {sorted(twice)[0]!r}")
        return self

    def stage(self, name: str) -> StagePolicy:
        """The stage of this name.

        Raises:
            ConfigError: the model has no such stage.
        """
        for stage in self.stages:
            if stage.name.lower() == name.lower():
                return stage
        known = [stage.name for stage in self.stages]
        raise ConfigError(
            f"Model {self.name!r} has no stage {name!r}", why=nearest(name, known), hint=f"Stages: {known}"
        )

    def before(self, stage: StagePolicy) -> StagePolicy | None:
        """The stage before this one, None for the first."""
        index = self.stages.index(stage)
        return self.stages[index - 1] if index else None

    def deployment_of(self, stage: StagePolicy) -> str:
        """Name of the stage's deployment; an empty string when nothing is deployed.

        Raises:
            InvalidName: it is no name for a deployment.
        """
        if not stage.deployment:
            return ""
        model = "".join(each if each.isalnum() else "-" for each in self.name.lower()).strip("-")
        return check_name(stage.deployment.replace("{model}", model))

    def dataset(self, name: str) -> DatasetPolicy:
        """The rows of this name.

        Raises:
            ConfigError: there are none.
        """
        if name in self.datasets:
            return self.datasets[name]
        if name == _DATASET:
            return DatasetPolicy()
        known = sorted({*self.datasets, _DATASET})
        raise ConfigError(f"There is no dataset {name!r}", why=nearest(name, known), hint=f"Known: {known}")


class Policy(BaseModel):
    """All of `lifecycle.yaml`."""

    model_config = _CONFIG

    datasets: dict[str, DatasetPolicy] = {}
    """Rows that all models can be measured on, by name."""
    default: ModelPolicy = ModelPolicy()
    """The path of models that have no policy of their own, and what theirs leave out."""
    models: dict[str, ModelPolicy] = {}
    """Policies by registered model."""

    @classmethod
    def load(cls, path: Path | str | None = None) -> Policy:
        """Read the policy file.

        Args:
            path: the file; None for the one that MLFLOW_DEPLOY_POLICY names, or `lifecycle.yaml` in the
                working folder, or, without any, the defaults.

        Raises:
            ConfigError: it cannot be read, or something in it cannot be used.
        """
        wanted = path or os.environ.get(VARIABLE)
        file = Path(wanted) if wanted else Path(FILE)
        if not wanted and not file.exists():
            return cls()
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The policy {file} cannot be read", why=str(error)) from error
        return cls.parse(text, str(file))

    @classmethod
    def parse(cls, text: str, source: str) -> Policy:
        """A policy from YAML.

        Args:
            source: where it comes from, for errors.

        Raises:
            ConfigError: something in it cannot be used.
        """
        return parse_document(cls, text, source)

    def for_model(self, name: str) -> ModelPolicy:
        """The policy of a registered model, with the defaults for what it leaves out."""
        own = self.models.get(name, self.default)
        given = {"datasets": {**self.datasets, **self.default.datasets, **own.datasets}, "name": name}
        for field in ("stages", "strict_path"):
            given[field] = getattr(own if field in own.model_fields_set else self.default, field)
        return own.model_copy(update=given)


def parse_document(kind: type[Parsed], text: str, source: str) -> Parsed:
    """A part of a policy from YAML, with errors that name the key.

    Raises:
        ConfigError: it is no YAML, or something in it cannot be used.
    """
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The policy {source} is no YAML", why=str(error)) from error
    try:
        return kind.model_validate({} if document is None else document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"The policy {source} has the unknown key {key!r}",
                why=nearest(str(first["loc"][-1]), _known_keys()),
                hint="`mlflow-deploy lifecycle check --keys` lists all keys",
            ) from None
        raise ConfigError(
            f"The policy {source} cannot be used: {key}", why=first["msg"].removeprefix("Value error, ")
        ) from None
    except ConfigError as error:
        raise ConfigError(f"The policy {source} cannot be used", why=error.text) from None


def described_keys() -> list[tuple[str, str]]:
    """Every key of the policy file with its meaning."""
    parts: list[tuple[str, type[BaseModel]]] = [
        ("", Policy),
        ("models.NAME.", ModelPolicy),
        ("datasets.NAME.", DatasetPolicy),
        ("stages[].", StagePolicy),
        ("stages[].approvals.", ApprovalPolicy),
    ]
    return [
        (prefix + name, " ".join((field.description or "").split()))
        for prefix, part in parts
        for name, field in part.model_fields.items()
    ]


def _known_keys() -> list[str]:
    return [key.rpartition(".")[2] for key, _ in described_keys()]
