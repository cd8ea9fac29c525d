"""What all graph forms share: bodies to feeds, outputs to answers, stacking of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.serving.answers import Answers
from mlflow_deploy.serving.backends.base import Call, TensorInfo
from mlflow_deploy.serving.bodies import GraphBodies
from mlflow_deploy.serving.errors import BadRequest, InvalidValue
from mlflow_deploy.serving.feeds import FrameFeeds, make_feeds
from mlflow_deploy.serving.rows import PackedRow
from mlflow_deploy.serving.signature import NUMPY_TYPES, parse_signature
from mlflow_deploy.serving.tensor_feeds import Feeds, TensorFeeds
from mlflow_deploy.serving.values import Array
from mlflow_deploy.settings import ServingSettings


class Graph(Protocol):
    """A loaded graph."""

    interruptible: bool

    def run(self, feeds: Any, expires: float) -> Sequence[Any]:
        """The outputs in the servable's order; ends with an exception when it is expired meanwhile.

        Args:
            feeds: `Feeds`, or a `PackedRow` where the model was told that the graph takes them.
        """

    def expire(self, now: float) -> None:
        """End the runs whose `expires` has passed."""


class GraphModel:
    """A model whose computation is a graph from named tensors to named tensors.

    Args:
        graph: the computation.
        providers: where it computes, for /version.
        packed: the graph takes packed rows, too.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: ServingSettings,
        graph: Graph,
        providers: tuple[str, ...],
        *,
        packed: bool = False,
    ) -> None:
        servable = bundle.manifest.servable
        self.signature = parse_signature(bundle.document("signature.json"))
        self.providers = providers
        self._feeds = make_feeds(servable.feeds, self.signature, settings.max_rows)
        self._answers = Answers(servable)
        self._graph = graph
        self.interruptible = graph.interruptible
        self._batchable = servable.batchable and settings.max_batch_size > 1
        # Calls that are computed together are stacked as arrays.
        self._bodies = GraphBodies(
            self._feeds,
            self.signature.params if self.signature else (),
            packed=packed and not self._batchable,
        )
        self.inputs = self._describe_inputs()
        self.outputs = self._describe_outputs()
        # The protocols' names of the tensors and the signature's own: the unnamed one is called `inputs`.
        self._tensor_names = [(info.name, info.name) for info in self.inputs]
        if isinstance(self._feeds, TensorFeeds):
            self._tensor_names = [(tensor.name or "inputs", tensor.name) for tensor in self._feeds.tensors]

    def expire(self, now: float) -> None:
        self._graph.expire(now)

    def parse_json(self, body: bytes) -> Call:
        return self._call(*self._bodies.from_json(body))

    def parse_csv(self, body: bytes) -> Call:
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest("The CSV body is not UTF-8 text") from error
        return self._call(*self._bodies.from_csv(text))

    def parse_parquet(self, body: bytes) -> Call:
        return self._call(*self._bodies.from_parquet(body))

    def parse_tensors(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Call:
        if params:
            self._bodies.check_params(params)
        if isinstance(self._feeds, FrameFeeds):
            return self._call(
                *self._feeds.from_columns({name: flat(name, tensors[name]) for name in tensors})
            )
        try:
            arrays = {tensor: tensors[name] for name, tensor in self._tensor_names}
        except KeyError as error:
            raise InvalidValue(f"Model is missing inputs {[error.args[0]]}") from error
        return self._call(*self._feeds.from_arrays(arrays))

    def _call(self, feeds: Feeds | PackedRow, rows: int) -> Call:
        if not self._batchable or isinstance(feeds, PackedRow):
            return Call(feeds, rows)
        return Call(feeds, rows, tuple(array.shape[1:] for array in feeds.values()))

    def run(self, call: Call) -> list[Array]:
        return self._answers.finish(self._graph.run(call.data, call.expires))

    def stack(self, calls: Sequence[Call]) -> Call:
        feeds = {name: np.concatenate([call.data[name] for call in calls]) for name in calls[0].data}
        return Call(feeds, sum(call.rows for call in calls), calls[0].stackable)

    def split(self, result: list[Array], calls: Sequence[Call]) -> list[Any]:
        total = sum(call.rows for call in calls)
        if any(array.ndim == 0 or array.shape[0] != total for array in result):
            # The servable says that rows may be stacked, but its outputs have no row for each.
            return [self.run(call) for call in calls]
        parts, start = [], 0
        for call in calls:
            parts.append([array[start : start + call.rows] for array in result])
            start += call.rows
        return parts

    def to_json(self, result: list[Array]) -> bytes:
        return self._answers.to_json(result)

    def to_tensors(self, result: list[Array]) -> list[tuple[str, Array]]:
        return self._answers.to_tensors(result)

    def _describe_inputs(self) -> tuple[TensorInfo, ...]:
        if isinstance(self._feeds, FrameFeeds):
            return tuple(
                TensorInfo(str(name), NUMPY_TYPES[column.type], (-1,), column.required)
                for name, column in zip(self._feeds.names, self._feeds.columns, strict=True)
            )
        return tuple(TensorInfo(t.name or "inputs", t.dtype, t.shape) for t in self._feeds.tensors)

    def _describe_outputs(self) -> tuple[TensorInfo, ...]:
        declared = self.signature.output_tensors if self.signature else ()
        shapes = {tensor.name or "predictions": tensor.shape for tensor in declared}
        return tuple(
            TensorInfo(name, output.dtype, shapes.get(name, (-1,)))
            for name, output in zip(self._answers.names, self._answers.outputs, strict=True)
        )


def flat(name: str, array: Array) -> Array:
    """A column of shape [rows] or [rows, 1] as [rows]."""
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        raise InvalidValue(f"Input {name!r} is a column and takes shape [rows] or [rows, 1]")
    return array
