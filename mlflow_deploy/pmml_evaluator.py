"""PMML files evaluated by JPMML-Evaluator on a Java machine inside this process."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy.errors import ConfigError, MissingExtra

SEPARATOR = "\t"
"""Stands between result fields that together make the columns of one output."""

_STARTING = threading.Lock()
_LARGEST_STACK = 64 * 1024 * 1024


class PmmlEvaluator:
    """A PMML model that answers whole tables.

    Args:
        path: the PMML file.
        outputs: names of the result fields, in order; several in one name make the columns of one array.

    Raises:
        MissingExtra: the evaluator is not installed.
        ConfigError: there is no Java.
    """

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        jpmml_evaluator, backend = _start_java()
        builder = jpmml_evaluator.LoadingModelEvaluatorBuilder(backend)
        self._evaluator = builder.loadFile(os.fspath(path)).build()
        self._outputs = [name.split(SEPARATOR) for name in outputs]

    def __call__(self, feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs in order, from arrays of shape [rows, 1] by column.

        Raises:
            ValueError: the model refuses a row.
        """
        import jpype
        import pandas as pd

        if not jpype.java.lang.Thread.isAttached():
            # As a daemon, so that the process may end while the thread lives.
            jpype.java.lang.Thread.attachAsDaemon()
        columns = {name: _values(array) for name, array in feeds.items()}
        results = self._evaluator.evaluateAll(pd.DataFrame(columns, dtype=object), parallelism=1)
        if "errors" in results and results["errors"].notna().any():
            raise ValueError(f"The model refuses a row: {results['errors'].dropna().iloc[0]}")
        return [self._output(results, fields) for fields in self._outputs]

    def _output(self, results: Any, fields: list[str]) -> Any:
        if len(fields) == 1:
            return np.asarray(results[fields[0]].tolist())
        return np.column_stack([results[field].to_numpy(dtype=np.float64) for field in fields])


def _values(array: Any) -> list[Any]:
    """A column as plain Python values; what is missing is None."""
    values = array.reshape(len(array)).tolist()
    return [None if value != value or value == "" else value for value in values]


def _start_java() -> tuple[Any, Any]:
    """The evaluator's module and its door to Java; one Java machine serves all models of a process."""
    try:
        import jpmml_evaluator
        import jpype
        from jpmml_evaluator.jpype import JPypeBackend
    except ModuleNotFoundError as error:
        raise MissingExtra("The PMML form", "pmml", missing=error.name or "") from error
    with _STARTING:
        try:
            if not jpype.isJVMStarted():
                # -Xrs: without its own handlers of signals, which belong to the server.
                jpype.startJVM(
                    "-Xrs", _stack_option(), classpath=jpmml_evaluator._classpath(user_classpath=[])
                )
            return jpmml_evaluator, JPypeBackend()
        except jpype.JVMNotFoundException as error:
            raise ConfigError(
                "The PMML form cannot run here",
                why="no Java was found on this machine",
                hint="Install a Java runtime of version 11 or later and set JAVA_HOME, or use format=auto",
            ) from error


def _stack_option() -> str:
    """Leaves the main thread the stack that it has.

    Java forbids a thread that calls it everything beyond its own idea of a stack, 1 MiB, and native code that
    needs more, such as the solvers of linear algebra, would end the process with a segmentation fault.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = _LARGEST_STACK if soft == resource.RLIM_INFINITY else min(soft, _LARGEST_STACK)
    return f"-Xss{max(wanted // 1024, 1024)}k"
