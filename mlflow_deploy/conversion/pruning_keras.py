"""Keras models pruned: the graph walked once, layers made anew with fewer units, weights cut to fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.pruning import MASKS, STRUCTURED, Pruned
from mlflow_deploy.errors import ConfigError, UnsupportedConversion

if TYPE_CHECKING:
    import keras

_DENSE = ("Dense",)
_CONVOLUTION = ("Conv1D", "Conv2D", "Conv3D")
_PASSING = (
    "Activation", "AlphaDropout", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "Dropout", "ELU",
    "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
    "GlobalAveragePooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "LeakyReLU",
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "ReLU", "SpatialDropout1D", "SpatialDropout2D",
    "UpSampling2D", "ZeroPadding1D", "ZeroPadding2D",
)  # fmt: skip
"""Layers that treat each channel by itself and have no weights."""

_MIXING = ("softmax", "log_softmax", "glu", "sparsemax")
"""Activations in which every channel depends on the others."""

_HINT = "Leave layers out with keep=, or use masks for compression only"


@dataclass(frozen=True)
class _Plan:
    """Which channels of each tensor stay.

    Attributes:
        channels: layer -> the channels of its output that stay.
        inputs: layer -> the channels of its input that stay.
        kept: prunable layer -> why it is left whole.
    """

    channels: dict[str, Array]
    inputs: dict[str, Array]
    kept: dict[str, str]


def prune_keras(model: keras.Model, ratio: float, keep: tuple[str, ...]) -> Pruned:
    """Make a narrower copy of a sequential or functional Keras model.

    Raises:
        UnsupportedConversion: the model has no graph, shares layers, or no layer can become narrower.
        ConfigError: a name in `keep` is no layer.
    """
    import keras

    graph = _graph(model)
    layers = _layers(graph)
    unknown = sorted(set(keep) - {layer.name for layer in layers})
    if unknown:
        known = ", ".join(layer.name for layer in layers)
        raise ConfigError(f"The model has no layer {unknown[0]!r}", hint=f"Layers: {known}")
    plan = _plan(graph, layers, ratio, keep)
    small = keras.models.clone_model(model, clone_function=lambda layer: _narrower(layer, plan))
    widths = {}
    for layer in layers:
        new = small.get_layer(layer.name)
        new.set_weights(_cut(layer, plan))
        new.trainable = layer.trainable
        if _prunable(layer) and _width(layer) != _width(new):
            widths[layer.name] = (_width(layer), _width(new))
    if not widths:
        why = "; ".join(f"{name} is left whole: {reason}" for name, reason in plan.kept.items())
        raise UnsupportedConversion(
            "The model", "a pruned model", why or "it has no dense or convolution layer", _HINT
        )
    return Pruned(small, STRUCTURED, widths, plan.kept)


def mask_keras(model: keras.Model, ratio: float) -> Pruned:
    """A copy with the smallest weights of each dense layer and convolution set to zero."""
    import keras

    masked = keras.models.clone_model(model)
    masked.set_weights(model.get_weights())
    for layer in masked.layers:
        if _prunable(layer):
            kernel, *rest = layer.get_weights()
            layer.set_weights(
                [np.where(np.abs(kernel) > np.quantile(np.abs(kernel), ratio), kernel, 0), *rest]
            )
    return Pruned(masked, MASKS, {}, {})


# --- the graph ---------------------------------------------------------------------------------------------


def _graph(model: keras.Model) -> keras.Model:
    """The model as a functional one, which shows its graph; its layers are the same objects."""
    import keras

    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs, model.outputs)
    if not hasattr(model, "operations"):
        raise UnsupportedConversion(
            f"A model of type {type(model).__name__}",
            "a pruned model",
            "its graph is hidden in Python code; only sequential and functional models show theirs",
            "Build it with keras.Sequential or keras.Model(inputs, outputs)",
        )
    return model


def _layers(model: keras.Model) -> list[Any]:
    """The layers in the order of the graph."""
    layers = [layer for layer in model.operations if type(layer).__name__ != "InputLayer"]
    for layer in layers:
        if _is_reused(model, layer):
            raise UnsupportedConversion(
                "The model", "a pruned model", f"layer {layer.name} is used more than once", _HINT
            )
    return layers


def _is_reused(model: keras.Model, layer: Any) -> bool:
    inside = [node for node in layer._inbound_nodes if _contains(model, node)]
    return len(inside) > 1


def _contains(model: keras.Model, node: Any) -> bool:
    return any(node in nodes for nodes in model._nodes_by_depth.values())


def _sources(model: keras.Model, layer: Any) -> list[Any]:
    """The layers whose outputs a layer takes, in order."""
    node = next(node for node in layer._inbound_nodes if _contains(model, node))
    return [tensor._keras_history.operation for tensor in node.arguments.keras_tensors]


def _plan(model: keras.Model, layers: list[Any], ratio: float, keep: tuple[str, ...]) -> _Plan:
    takers: dict[str, list[Any]] = {}
    for layer in layers:
        for source in _sources(model, layer):
            takers.setdefault(source.name, []).append(layer)
    answers = {tensor._keras_history.operation.name for tensor in model.outputs}
    plan = _Plan({}, {}, {})
    for layer in layers:
        sources = _sources(model, layer)
        arriving = [plan.channels.get(source.name, np.arange(_channels(source.output))) for source in sources]
        plan.inputs[layer.name] = _joined(sources, arriving)
        plan.channels[layer.name] = _leaving(layer, sources, plan.inputs[layer.name])
        if _prunable(layer):
            why = "keep= names it" if layer.name in keep else _blocked(layer, takers, answers)
            if why:
                plan.kept[layer.name] = why
            else:
                plan.channels[layer.name] = _strongest(layer, ratio)
    return plan


def _blocked(layer: Any, takers: dict[str, list[Any]], answers: set[str]) -> str:
    """Why the channels of a layer cannot be removed, or the empty string: followed to all that take them."""
    ahead = [layer]
    while ahead:
        current = ahead.pop()
        if current.name in answers:
            return "it gives the answer"
        if _mixes(current):
            return f"{current.name} mixes its channels"
        for taker in takers.get(current.name, ()):
            kind = type(taker).__name__
            if _prunable(taker):
                continue
            if kind in (*_PASSING, "Concatenate", "Flatten") or _by_channel(taker):
                ahead.append(taker)
            else:
                return f"{taker.name} ({kind}) takes it, which is not understood"
    return ""


def _mixes(layer: Any) -> bool:
    activation = getattr(layer, "activation", None)
    return activation is not None and getattr(activation, "__name__", "") in _MIXING


def _by_channel(layer: Any) -> bool:
    """Whether a layer has weights of one channel each that can be cut along."""
    kind = type(layer).__name__
    if kind == "BatchNormalization":
        axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
        return bool(axis in (-1, len(layer.output.shape) - 1))
    return kind in ("DepthwiseConv1D", "DepthwiseConv2D") and layer.depth_multiplier == 1 and _last(layer)


def _prunable(layer: Any) -> bool:
    kind = type(layer).__name__
    return kind in _DENSE or (kind in _CONVOLUTION and layer.groups == 1 and _last(layer))


def _last(layer: Any) -> bool:
    return bool(layer.data_format == "channels_last")


def _width(layer: Any) -> int:
    return int(layer.units if hasattr(layer, "units") else layer.filters)


def _channels(tensor: Any) -> int:
    return int(tensor.shape[-1]) if len(tensor.shape) > 1 and tensor.shape[-1] is not None else 1


def _joined(sources: list[Any], arriving: list[Array]) -> Array:
    """The channels that arrive at a layer, counted in the whole model."""
    if len(arriving) < 2:
        return arriving[0] if arriving else np.arange(1)
    offsets = np.cumsum([0, *(_channels(source.output) for source in sources)])
    return np.concatenate([offset + kept for offset, kept in zip(offsets, arriving, strict=False)])


def _leaving(layer: Any, sources: list[Any], inputs: Array) -> Array:
    """The channels of a layer's output that stay, as long as the layer itself removes none."""
    kind = type(layer).__name__
    if kind == "Flatten" and sources:
        shape = sources[0].output.shape[1:]
        places = int(np.prod(shape[:-1]))
        return (np.arange(places)[:, None] * int(shape[-1]) + inputs[None, :]).reshape(-1)
    if kind in _PASSING or kind == "Concatenate" or _by_channel(layer):
        return inputs
    return np.arange(_channels(layer.output))


def _strongest(layer: Any, ratio: float) -> Array:
    """The units or filters with the largest weights, in their order; at least one."""
    kernel = layer.get_weights()[0]
    strength = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    count = max(1, kernel.shape[-1] - int(kernel.shape[-1] * ratio))
    return np.asarray(np.sort(np.argsort(-strength, kind="stable")[:count]))


# --- new layers --------------------------------------------------------------------------------------------


def _narrower(layer: Any, plan: _Plan) -> Any:
    config = layer.get_config()
    if layer.name in plan.channels and _prunable(layer):
        config["units" if hasattr(layer, "units") else "filters"] = len(plan.channels[layer.name])
    return type(layer).from_config(config)


def _cut(layer: Any, plan: _Plan) -> list[Array]:
    weights, inputs, channels = layer.get_weights(), plan.inputs[layer.name], plan.channels[layer.name]
    if _prunable(layer):
        kernel, *bias = weights
        return [kernel[..., inputs, :][..., channels], *(values[channels] for values in bias)]
    if type(layer).__name__ == "BatchNormalization":
        return [values[channels] for values in weights]
    if type(layer).__name__.startswith("Depthwise"):
        kernel, *bias = weights
        return [kernel[..., channels, :], *(values[channels] for values in bias)]
    return list(weights)
