"""What gates look at: a version's files, bundle, running server and rows, and what it would replace."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from mlflow_deploy.bundle import SIGNATURE, Bundle, ModelSource, read_bundle
from mlflow_deploy.config import DeploymentSpec, state_home
from mlflow_deploy.errors import BundleError, ConversionError, DataError
from mlflow_deploy.lifecycle.gates.judged import Rated, find_rows, judge
from mlflow_deploy.lifecycle.gates.server import GateServer, serving
from mlflow_deploy.lifecycle.policy import ModelPolicy, StagePolicy
from mlflow_deploy.lifecycle.prepared import digest_of
from mlflow_deploy.lifecycle.registry import ResolvedModel, fetch, registry_errors, resolve
from mlflow_deploy.lifecycle.steps import Progress, make_bundle
from mlflow_deploy.progress import mlflow_is_quiet
from mlflow_deploy.targets.base_records import DeploymentRecord

if TYPE_CHECKING:
    from mlflow.models import Model

    from mlflow_deploy.monitoring.answers import Answers


class GateContext:
    """A version on its way to a stage. Everything is made when a gate first asks for it, and only once.

    Use it as a context manager: at its end servers are stopped and downloads removed.

    Attributes:
        model: the fixed version.
        policy: the policy of its model.
        stage: the stage that it shall get into.
        record: the deployment that it would change, None when there is none yet.
        requester: who wants it there.
        reuse: whether bundles and verdicts that were made before, of exactly the same, are taken.
        progress: takes one line on what is being done now.
    """

    def __init__(
        self,
        model: ResolvedModel,
        policy: ModelPolicy,
        stage: StagePolicy,
        *,
        record: DeploymentRecord | None,
        requester: str,
        progress: Progress,
        reuse: bool = False,
    ) -> None:
        self.reuse = reuse
        self.model, self.policy, self.stage = model, policy, stage
        self.record, self.requester, self.progress = record, requester, progress
        self._stack = contextlib.ExitStack()
        self._bundle: Bundle | None = None
        self._bundles: dict[str, Bundle] = {}
        self._servers: dict[str, GateServer] = {}
        self._answers: dict[tuple[str, str], Answers] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    # --- the version itself -------------------------------------------------------------------------------

    @cached_property
    def _fetched(self) -> tuple[Path, ModelSource]:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-deploy-")))
        self.progress(f"Fetching {self.model.uri}")
        with mlflow_is_quiet():
            return fetch(self.model, folder)

    @property
    def folder(self) -> Path:
        """The model's files on this machine."""
        return self._fetched[0]

    @property
    def source(self) -> ModelSource:
        """Where the model came from."""
        return self._fetched[1]

    @cached_property
    def meta(self) -> Model:
        """The parsed MLmodel file; reading it loads nothing of the model."""
        from mlflow_deploy.conversion.native import read_meta

        return read_meta(self.folder)

    @cached_property
    def signature(self) -> dict[str, Any] | None:
        """The signature as JSON: `inputs`, `outputs` and `params`."""
        from mlflow_deploy.conversion.native import signature_document

        return signature_document(self.meta)

    # --- its bundle and server ----------------------------------------------------------------------------

    @property
    def spec(self) -> DeploymentSpec:
        """The settings that the deployment would have."""
        return self.stage.spec(self.record.stable.settings if self.record else None)

    @property
    def bundle(self) -> Bundle:
        """What would be deployed. This loads the model, to convert it and to compare the answers.

        Raises:
            DeployError: it cannot be made.
        """
        if self._bundle is None:
            self._bundle, _ = make_bundle(
                self.model, self.spec, self.progress, fetched=self._fetched, reuse=self.reuse
            )
        return self._bundle

    def bundle_to_deploy(self) -> Bundle | None:
        """The bundle; None when it cannot be made, which the deployment then finds out again and tells."""
        try:
            return self.bundle
        except (ConversionError, BundleError):
            return None

    @property
    def bundle_digest(self) -> str:
        """Digest of the bundle; empty when no gate asked for it."""
        return self._bundle.digest if self._bundle else ""

    @property
    def served(self) -> dict[str, Any]:
        """What the answers of the bundle's server rest on."""
        return {"bundle": self.bundle.digest, "serving": msgspec.to_builtins(self.spec.serving)}

    def judged(self, dataset: str) -> dict[str, Any] | None:
        """What a judgement of these answers on a dataset rests on; None where its rows have no digest."""
        digest = digest_of(self.rows(dataset).frame)
        wanted = self.policy.dataset(dataset).model_dump(mode="json")
        return {**self.served, "dataset": wanted, "rows": digest} if digest else None

    def server(self, bundle: Bundle) -> GateServer:
        """The running server of a bundle.

        Raises:
            StartFailed: it does not become ready.
        """
        if bundle.digest not in self._servers:
            self.progress("Starting the server of the bundle")
            spec = self.spec
            started = serving(bundle, spec.serving, ready_seconds=spec.ready_seconds)
            self._servers[bundle.digest] = self._stack.enter_context(started)
        return self._servers[bundle.digest]

    # --- what it is compared with -------------------------------------------------------------------------

    @cached_property
    def champion_uri(self) -> str:
        """The version that this one would replace: what is deployed, or has the stage's alias or stage.

        An empty string when there is none.
        """
        if self.record is not None:
            return self.record.stable.resolved_uri
        import mlflow

        name, stage = self.model.name, self.stage
        if not name:
            return ""
        with registry_errors(self.model.uri):
            client = mlflow.MlflowClient()
            aliases = client.get_registered_model(name).aliases
            if stage.alias in aliases:
                return f"models:/{name}/{aliases[stage.alias]}"
            if stage.classic_stage != "None":
                others = [
                    int(each.version)
                    for each in client.search_model_versions(f"name='{name}'")
                    if each.current_stage == stage.classic_stage and each.version != self.model.version
                ]
                if others:
                    return f"models:/{name}/{max(others)}"
        return ""

    def bundle_of(self, uri: str) -> Bundle:
        """The bundle of another version: the deployed one where it is at hand, else it is made.

        Raises:
            DeployError: it cannot be made.
        """
        if uri not in self._bundles:
            stable = self.record.stable if self.record else None
            if stable is not None and stable.resolved_uri == uri:
                with contextlib.suppress(BundleError):
                    self._bundles[uri] = read_bundle(state_home() / "bundles" / stable.bundle)
            if uri not in self._bundles:
                self._bundles[uri], _ = make_bundle(resolve(uri), self.spec, self.progress, reuse=self.reuse)
        return self._bundles[uri]

    # --- rows and answers ---------------------------------------------------------------------------------

    def rows(self, dataset: str) -> Rated:
        """The rows of a dataset of the policy.

        Raises:
            DataError: there are none.
        """
        inputs = [each["name"] for each in (self.signature or {}).get("inputs") or [] if each.get("name")]
        return find_rows(
            self.policy.dataset(dataset), dataset, self.model.run_id or self.source.run_id, inputs
        )

    def answers(self, bundle: Bundle, dataset: str) -> Answers:
        """What the server of a bundle answers to the rows of a dataset, beside the true answers.

        Raises:
            DataError: the answers cannot be judged.
            DeployError: the server does not start or refuses rows.
        """
        key = (bundle.digest, dataset)
        if key not in self._answers:
            signature = bundle.document(SIGNATURE)
            if not signature:
                raise DataError("The rows cannot be asked", why="the model has no signature")
            self.progress(f"Asking for the rows of {dataset}")
            column = self.policy.dataset(dataset).prediction
            self._answers[key] = judge(self.server(bundle), self.rows(dataset), signature, column)
        return self._answers[key]
