"""What can be seen in a fitted scikit-learn model without running it: parts, traps, values it knows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

THRESHOLDS = 8
"""How many thresholds of trees are tried per column."""

WORDS = r"(?u)\b\w\w+\b"
"""scikit-learn's own pattern for words, the only one that the graph splits texts by."""

_TREES = (
    "DecisionTree", "ExtraTree", "RandomForest", "GradientBoosting", "IsolationForest", "RandomTreesEmbedding",
    "XGB",
)  # fmt: skip

_DECIDING = ("Hist", "LGBM", "KBinsDiscretizer", "Binarizer", "KNeighbors", "RadiusNeighbors")
"""Estimators, by the beginning of their names, that compare 64-bit numbers."""

_KEEPING = (
    "AdaBoost", "Bagging", "ColumnTransformer", "FeatureUnion", "GridSearch", "OneHotEncoder", "OrdinalEncoder",
    "Pipeline", "RandomizedSearch", "Select", "SimpleImputer", "TargetEncoder", "VarianceThreshold",
)  # fmt: skip
"""Estimators, by the beginning of their names, that hand on numbers without arithmetic."""


def parts(model: Any) -> Iterator[Any]:
    """The model and all estimators inside it, fitted ones where they exist."""
    seen: set[int] = set()
    stack = [model]
    while stack:
        item = stack.pop()
        if isinstance(item, (list, tuple)):
            stack.extend(item)
        elif isinstance(item, np.ndarray) and item.dtype == object:
            stack.extend(item.ravel().tolist())
        elif hasattr(item, "get_params") and not isinstance(item, type) and id(item) not in seen:
            seen.add(id(item))
            yield item
            # Unfitted prototypes of the parameters are no part of what answers, except the steps of a
            # pipeline, which are fitted in place.
            names = [name for name in vars(item) if name.endswith("_")] + ["steps"]
            stack.extend(vars(item).get(name) for name in names)


def convertible(model: Any) -> Any:
    """The model, or a copy with settings that have no effect on its answers but are refused by skl2onnx."""
    if not any(hasattr(part, "flatten_transform") for part in parts(model)):
        return model
    model = copy.deepcopy(model)
    for part in parts(model):
        if hasattr(part, "flatten_transform"):
            part.flatten_transform = False
    return model


def is_classifier(model: Any) -> bool:
    """Whether the model answers with classes."""
    from sklearn.base import is_classifier as check

    return bool(check(model))


def is_tree(part: Any) -> bool:
    """Whether the part compares inputs with thresholds."""
    return type(part).__name__.removeprefix("Hist").startswith(_TREES)


def decides_in_64_bits(model: Any) -> bool:
    """Whether decisions of the model hang on 64-bit numbers, so that 32-bit arithmetic would flip some.

    Flips are too rare to be found reliably by comparing rows, and as wrong as they are rare: a value that lies
    on a threshold in one precision lies beside it in the other. Trees alone are no such case, because
    scikit-learn itself rounds their input to 32 bits.
    """
    inside = list(parts(model))
    names = [type(part).__name__ for part in inside]
    if any(name.startswith(_DECIDING) for name in names):
        return True
    trees = [part for part in inside if is_tree(part)]
    return bool(trees) and any(not is_tree(part) and not _keeps_values(part) for part in inside)


def _keeps_values(part: Any) -> bool:
    return type(part).__name__.startswith(_KEEPING)


def vectorizers(model: Any) -> list[Any]:
    """Parts that split texts into words."""
    return [part for part in parts(model) if type(part).__name__ in ("CountVectorizer", "TfidfVectorizer")]


def selects_by_name(model: Any) -> bool:
    """Whether a part picks its columns by name, so that one array of all columns will not do."""
    return any(
        isinstance(name, str)
        for part in parts(model)
        if hasattr(part, "transformers_")
        for _, _, columns in part.transformers_
        for name in _listed(columns)
    )


def _listed(columns: Any) -> list[Any]:
    return [columns] if isinstance(columns, (str, int, slice)) else list(columns)


def refuse(model: Any) -> str:
    """Why a model is known to convert wrongly, or the empty string."""
    for part in parts(model):
        name = type(part).__name__
        if name == "FunctionTransformer" and part.func is not None:
            return "FunctionTransformer runs a Python function, which has no ONNX form"
        if name in ("CountVectorizer", "TfidfVectorizer"):
            why = _refuse_words(part)
            if why:
                return why
    return ""


def _refuse_words(part: Any) -> str:
    name = type(part).__name__
    if part.token_pattern != WORDS or part.analyzer != "word":
        return f"{name} with its own analyzer or token pattern has no proven ONNX form"
    if callable(part.tokenizer) or callable(part.preprocessor) or part.strip_accents is not None:
        return f"{name} with its own tokenizer, preprocessor or strip_accents has no ONNX form"
    return ""


# --- values at which the model changes ---------------------------------------------------------------------


def known_values(model: Any, names: Sequence[str] | None) -> dict[str | int, tuple[Any, ...]]:
    """Values per input column that the model knows: categories, centres of scalers, thresholds of trees.

    Args:
        names: columns of the signature in order; None for a plain array, whose columns are numbered.
    """
    found: dict[str | int, list[Any]] = {}
    _collect(model, list(names) if names is not None else None, found)
    return {
        column: tuple(dict.fromkeys(value for value in values if value == value and value is not None))[:64]
        for column, values in found.items()
        if values
    }


def _collect(model: Any, names: Sequence[Any] | None, found: dict[str | int, list[Any]]) -> None:
    def at(index: int) -> Any:
        return index if names is None else names[index] if index < len(names) else None

    if hasattr(model, "best_estimator_"):
        _collect(model.best_estimator_, names, found)
    elif hasattr(model, "steps"):
        first = next((step for _, step in model.steps if step != "passthrough"), None)
        _collect(first, names, found)
    elif hasattr(model, "transformers_"):
        for _, transformer, columns in model.transformers_:
            chosen = [name if isinstance(name, str) else at(int(name)) for name in _picked(columns)]
            _collect(transformer, chosen, found)
    else:
        for index, value in _own_values(model):
            column = at(index)
            if column is not None:
                found.setdefault(column, []).append(value)


def _picked(columns: Any) -> list[Any]:
    return [name for name in _listed(columns) if isinstance(name, (str, int, np.integer))]


def _own_values(model: Any) -> Iterator[tuple[int, Any]]:
    """Pairs of feature index and value of one estimator."""
    for index, categories in enumerate(getattr(model, "categories_", ())):
        for value in categories[:32]:
            yield index, value.item() if isinstance(value, np.generic) else value
    for attribute in ("mean_", "center_", "data_min_", "data_max_", "statistics_"):
        values = getattr(model, attribute, None)
        if isinstance(values, np.ndarray) and values.ndim == 1:
            yield from enumerate(values.tolist())
    yield from _thresholds(model)


def _thresholds(model: Any) -> Iterator[tuple[int, float]]:
    counts: dict[int, int] = {}
    for part in parts(model) if is_tree(model) else ():
        tree = getattr(part, "tree_", None)
        if tree is None:
            continue
        for feature, threshold in zip(tree.feature.tolist(), tree.threshold.tolist(), strict=True):
            if feature >= 0 and counts.setdefault(feature, 0) < THRESHOLDS:
                counts[feature] += 1
                yield feature, threshold
