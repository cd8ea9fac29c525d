"""Pruning: neurons and channels really removed, or, as compression only, small weights set to zero."""

from __future__ import annotations

import copy
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy.conversion.feeds import Array
from mlflow_deploy.conversion.training import (
    TrainingData,
    framework,
    torch_targets,
    torch_task_loss,
    train_torch,
)
from mlflow_deploy.errors import ConfigError, MissingExtra, UnsupportedConversion

if TYPE_CHECKING:
    import torch

STRUCTURED = "structured pruning"
MASKS = "magnitude masks (compression only)"

_HINT = "Leave layers out with keep=, prune the part that is a plain chain, or use masks for compression only"


@dataclass(frozen=True)
class Pruned:
    """A pruned model; the one that it was made from is unchanged.

    Attributes:
        model: the pruned model, in evaluation mode.
        method: "structured pruning" or "magnitude masks (compression only)".
        widths: layer -> its number of neurons or channels before and after.
        kept: layer -> why it was left whole.
        losses: mean loss of each epoch of fine-tuning.
    """

    model: Any
    method: str
    widths: dict[str, tuple[int, int]]
    kept: dict[str, str]
    losses: tuple[float, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the comparison has to know."""
        if self.method == MASKS:
            return ("Masked weights are zeros that are still multiplied: only compressed files get smaller.",)
        return tuple(f"{name} was left whole: {why}." for name, why in self.kept.items())


def prune(
    model: Any,
    example: Array,
    *,
    ratio: float = 0.5,
    keep: tuple[str, ...] = (),
    fine_tuning: TrainingData | None = None,
) -> Pruned:
    """Remove the neurons and channels with the smallest weights from a copy of a PyTorch or Keras model.

    Dense layers, convolutions and the normalisation between them become narrower; what goes into a removed
    channel and what comes out of it is removed as well, through residual connections and concatenations too.
    The layers that give the answer keep their width.

    Args:
        example: [rows, ...] rows that the model takes; the pruned model has to answer them in the same shape.
        ratio: share of the neurons of each layer that is removed, above 0 and below 1.
        keep: names of layers that keep their width.
        fine_tuning: rows to train on afterwards; None leaves the remaining weights as they are.

    Raises:
        UnsupportedConversion: the model's graph is not understood, or no layer can become narrower.
        ConfigError: the ratio, or a name in `keep`, is impossible.
        MissingExtra: the library that prunes PyTorch models is not installed.
    """
    _check_ratio(ratio)
    if framework(model) == "torch":
        pruned = _prune_torch(model, example, ratio, keep)
    else:
        from mlflow_deploy.conversion.pruning_keras import prune_keras

        pruned = prune_keras(model, ratio, keep)
        _same_shape(np.asarray(model(example)), np.asarray(pruned.model(example)))
    return pruned if fine_tuning is None else _tuned(pruned, fine_tuning)


def mask(model: Any, *, ratio: float = 0.5) -> Pruned:
    """Set the smallest weights of each dense layer and convolution of a copy to zero: compression only.

    The model computes as much as before and is no faster; only a compressed file of it is smaller.

    Raises:
        ConfigError: the ratio is impossible.
        UnsupportedConversion: the model is neither of PyTorch nor of Keras.
    """
    _check_ratio(ratio)
    if framework(model) == "keras":
        from mlflow_deploy.conversion.pruning_keras import mask_keras

        return mask_keras(model, ratio)
    import torch

    masked = copy.deepcopy(model).eval()
    with torch.no_grad():
        for module in masked.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
                weight = module.weight
                border = torch.quantile(weight.abs().flatten()[:1_000_000], ratio)
                weight.mul_(weight.abs() > border)
    return Pruned(masked, MASKS, {}, {})


# --- PyTorch -----------------------------------------------------------------------------------------------


def _prune_torch(model: torch.nn.Module, example: Array, ratio: float, keep: tuple[str, ...]) -> Pruned:
    import torch

    try:
        pruning = importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise MissingExtra("Pruning of PyTorch models", "torch", missing="torch-pruning") from error
    if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        raise UnsupportedConversion(
            f"A {type(model).__name__}",
            "a pruned model",
            "it is a traced program whose shapes are fixed; only modules in Python can be pruned",
            "Prune the module that it was traced from, and export again",
        )
    small = copy.deepcopy(model).eval()
    inputs = torch.from_numpy(np.ascontiguousarray(example))
    with torch.no_grad():
        expected = small(inputs)
    whole = dict.fromkeys(keep, "keep= names it")
    layers = dict(small.named_modules())
    unknown = sorted(set(keep) - set(layers))
    if unknown:
        raise ConfigError(
            f"The model has no layer {unknown[0]!r}", hint=f"Layers: {', '.join(filter(None, layers))}"
        )
    before = _widths(small)
    try:
        graph = pruning.DependencyGraph().build_dependency(small, example_inputs=inputs)
        whole |= dict.fromkeys(_answering(graph, small), "it gives the answer")
        pruner = pruning.pruner.BasePruner(
            small,
            inputs,
            importance=pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[layers[name] for name in whole],
        )
        pruner.step()
        with torch.no_grad():
            answer = small(inputs)
    except Exception as error:
        # The library raises anything where it does not understand a graph, and so does a graph that it broke.
        raise _not_understood(model, error) from error
    _same_shape(expected.numpy(), answer.numpy())
    after = _widths(small)
    widths = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    if not widths:
        raise UnsupportedConversion(
            "The model", "a pruned model", f"no layer can become narrower at a ratio of {ratio}", _HINT
        )
    for module in small.modules():
        module.requires_grad_(True)
    return Pruned(small, STRUCTURED, widths, whole)


def _widths(model: torch.nn.Module) -> dict[str, int]:
    """Neurons or channels of each dense layer and convolution."""
    found = {}
    for name, module in model.named_modules():
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(width, int):
            found[name] = width
    return found


def _answering(graph: Any, model: torch.nn.Module) -> list[str]:
    """Layers whose channels no other layer takes in: their width is that of the answer."""
    modules = dict(model.named_modules())
    weighted = set(_widths(model))
    names = {id(module): name for name, module in modules.items()}
    found = []
    for name in sorted(weighted):
        if modules[name] not in graph.module2node:
            continue  # A part of another layer, such as the projection inside attention, narrows with it.
        remove = graph.get_pruner_of_module(modules[name]).prune_out_channels
        group = graph.get_pruning_group(modules[name], remove, idxs=[0])
        taken = any(
            names.get(id(dependency.target.module)) in weighted
            and graph.is_in_channel_pruning_fn(dependency.handler)
            for dependency, _ in group
        )
        if not taken:
            found.append(name)
    return found


def _not_understood(model: torch.nn.Module, error: Exception) -> UnsupportedConversion:
    text = " ".join(str(error).split())[:300]
    recurrent = [
        name for name, module in model.named_modules() if type(module).__name__ in ("LSTM", "GRU", "RNN")
    ]
    why = f"the graph is not understood: {type(error).__name__}: {text}"
    if recurrent:
        why = f"{recurrent[0]} is a recurrent layer, whose width is not that of its weights"
    elif isinstance(error, RuntimeError) and ("shape" in text or "size" in text):
        why = (
            "a width is written into its code, such as view(-1, 288), and no longer fits when layers become "
            f"narrower ({text})"
        )
    return UnsupportedConversion(f"A model of type {type(model).__name__}", "a pruned model", why, _HINT)


# --- both --------------------------------------------------------------------------------------------------


def _tuned(pruned: Pruned, data: TrainingData) -> Pruned:
    if framework(pruned.model) == "torch":
        losses = train_torch(pruned.model, data, torch_task_loss(data), torch_targets(data))
    else:
        from mlflow_deploy.conversion.training import keras_task_loss, train_keras

        losses = train_keras(pruned.model, data, keras_task_loss(pruned.model, data), data.labels)
    return Pruned(pruned.model, pruned.method, pruned.widths, pruned.kept, tuple(losses))


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise ConfigError(
            f"A ratio of {ratio} cannot be pruned", hint="Give a share above 0 and below 1, such as 0.5"
        )


def _same_shape(before: Array, after: Array) -> None:
    if before.shape != after.shape:
        raise UnsupportedConversion(
            "The model",
            "a pruned model",
            f"its answer would have shape {list(after.shape)} instead of {list(before.shape)}",
            _HINT,
        )
