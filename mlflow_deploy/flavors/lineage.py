"""Logs a finished model folder as a new model that names the one it came from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo

PARENT = "mlflow_deploy.parent"
"""Tag of a logged model: URI of the model that it was made from."""

CHANGE = "mlflow_deploy.change"
"""Tag of a logged model: what was done to its parent."""


@dataclass(frozen=True)
class _Finished:
    """A model folder in the guise of a flavor module, which is how MLflow takes models to log."""

    folder: Path

    def save_model(self, path: str, mlflow_model: Model, **_: Any) -> None:
        """Copy the folder, keeping the identity that MLflow gives to the new model."""
        from mlflow.models import Model

        shutil.copytree(self.folder, path, ignore=shutil.ignore_patterns("__pycache__"))
        source = Model.load(str(self.folder / "MLmodel"))
        mlflow_model.flavors = dict(source.flavors)
        mlflow_model.signature = source.signature
        if source.saved_input_example_info:
            mlflow_model.saved_input_example_info = source.saved_input_example_info
        mlflow_model.metadata = source.metadata
        mlflow_model.model_size_bytes = source.model_size_bytes
        mlflow_model.save(str(Path(path) / "MLmodel"))


def log_folder(
    folder: Path,
    *,
    change: str,
    parent: str,
    name: str | None = None,
    registered_model_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> ModelInfo:
    """Log a model folder.

    Args:
        folder: a complete model folder.
        change: what was done to the parent: `add onnx`, `seal`...
        parent: URI of the model that it was made from; empty when there is none.
        name: name of the logged model; by default that of its parent, or `model`.
        registered_model_name: register it as a new version of this model.
        tags: more tags of the logged model.
    """
    import mlflow
    from mlflow.entities import LoggedModelInput
    from mlflow.models import Model

    known = _parent_model(folder)
    info: ModelInfo = Model.log(
        artifact_path=None,
        flavor=_Finished(folder),
        flavor_name="mlflow_deploy",
        name=name or (known.name if known else "model"),
        registered_model_name=registered_model_name,
        run_id=known.source_run_id if known and mlflow.active_run() is None else None,
        tags={CHANGE: change, **({PARENT: parent} if parent else {}), **(tags or {})},
        validate_serving_input=False,
    )
    run = mlflow.active_run()
    if run is not None and known is not None:
        mlflow.MlflowClient().log_inputs(run.info.run_id, models=[LoggedModelInput(known.model_id)])
    return info


def _parent_model(folder: Path) -> Any:
    """The logged model that a folder was downloaded from, None when it was never logged here."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    model_id = Model.load(str(folder / "MLmodel")).model_id
    if not model_id:
        return None
    try:
        return mlflow.MlflowClient().get_logged_model(model_id)
    except MlflowException:
        # It was logged to another tracking server, or deleted: the tag still names it.
        return None
