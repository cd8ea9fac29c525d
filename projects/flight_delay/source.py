"""Where logged rows lie: a file among a run's artifacts, as a dataset source that MLflow can write down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.dataset_source import DatasetSource


class RunArtifactSource(DatasetSource):
    """A file of a run, `runs:/RUN_ID/PATH`.

    MLflow has sources for local and cloud folders, none for artifacts that its own server keeps.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @staticmethod
    def _get_source_type() -> str:
        return "run_artifact"

    def load(self, dst_path: str | None = None) -> Path:
        """Fetch the file and return where it lies on this machine."""
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=self.uri, dst_path=dst_path))

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, str) and raw_source.startswith("runs:/")

    @classmethod
    def _resolve(cls, raw_source: str) -> RunArtifactSource:
        return cls(raw_source)

    def to_dict(self) -> dict[str, str]:
        """What is written into the run."""
        return {"uri": self.uri}

    @classmethod
    def from_dict(cls, source_dict: dict[str, str]) -> RunArtifactSource:
        """The source that `to_dict` wrote."""
        return cls(source_dict["uri"])
