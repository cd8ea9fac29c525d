"""Runs PMML servables with JPMML-Evaluator on a Java machine inside the worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.pmml_evaluator import PmmlEvaluator
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.tensor_feeds import Feeds
from mlflow_deploy.settings import ServingSettings


def load(bundle: Bundle, settings: ServingSettings) -> GraphModel:
    """Load the model.

    Raises:
        MissingExtra: the evaluator is not installed.
        ConfigError: there is no Java.
    """
    names = [output.name for output in bundle.manifest.servable.outputs]
    graph = PmmlGraph(PmmlEvaluator(bundle.servable_path, names))
    return GraphModel(bundle, settings, graph, ("java",))


class PmmlGraph:
    """A PMML model as the graph that it is not: columns in, result fields out."""

    interruptible = False

    def __init__(self, evaluator: PmmlEvaluator) -> None:
        self._evaluator = evaluator

    def run(self, feeds: Feeds, expires: float) -> Sequence[Any]:
        """The outputs in the servable's order.

        Raises:
            ValueError: the model refuses a row.
        """
        return self._evaluator(feeds)

    def expire(self, now: float) -> None:
        """Do nothing: a running evaluation cannot be ended."""
