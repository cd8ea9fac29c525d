"""Runs ONNX servables with ONNX Runtime: one session, shared by all threads of the worker."""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.serving.backends.bound import BoundRuns
from mlflow_deploy.serving.backends.devices import wants_gpu, without_gpu
from mlflow_deploy.serving.backends.graph import GraphModel
from mlflow_deploy.serving.tensor_feeds import Feeds
from mlflow_deploy.serving.tuning import cpu_quota
from mlflow_deploy.settings import ServingSettings

_LEVELS = {
    "disable": "DISABLE_ALL",
    "basic": "ENABLE_BASIC",
    "extended": "ENABLE_EXTENDED",
    "layout": "ENABLE_LAYOUT",
    "all": "ENABLE_ALL",
}
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def load(bundle: Bundle, settings: ServingSettings) -> GraphModel:
    """Load the graph.

    Raises:
        ConfigError: the bundle's feeds or outputs are not those of the graph, or TensorRT cannot be used.
        GpuMissing: a GPU is asked for and cannot be used.
    """
    session = open_session(bundle, settings)
    names = [output.name for output in bundle.manifest.servable.outputs]
    graph = OnnxGraph(session, names)
    return GraphModel(bundle, settings, graph, tuple(session.get_providers()), packed=graph.packed)


def open_session(bundle: Bundle, settings: ServingSettings) -> Any:
    """The onnxruntime.InferenceSession of a bundle with an ONNX servable that is in the clear.

    The servable's options are `graph_optimization_level` (disable, basic, extended, layout or all),
    `disabled_optimizers` (names) and `config` (entries of ONNX Runtime's session configuration).
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    servable = bundle.manifest.servable
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads or cpu_quota()
    options.inter_op_num_threads = 1
    # Spinning threads burn up to a core while no request comes.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if level := servable.options.get("graph_optimization_level"):
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{_LEVELS[level]}")
    for key, value in servable.options.get("config", {}).items():
        options.add_session_config_entry(key, str(value))
    gpu = wants_gpu(settings)
    # An engine holds the weights of its model in the clear.
    cache = "" if servable.sealed else settings.engine_cache
    providers = choose_providers(ort.get_available_providers(), settings, gpu=gpu, cache=cache)
    if len(providers) > 1:
        _load_libraries(ort, settings)
    with contextlib.ExitStack() as stack:
        if servable.sealed:
            # ONNX Runtime refuses to follow the links that an opened model consists of.
            _lend_external_data(options, bundle.servable_path, stack)
        session = ort.InferenceSession(
            os.fspath(bundle.servable_path),
            options,
            providers=providers,
            disabled_optimizers=list(servable.options.get("disabled_optimizers", ())),
        )
    _check_providers(session.get_providers(), settings, gpu=len(providers) > 1)
    return session


def _load_libraries(ort: Any, settings: ServingSettings) -> None:
    """Load the GPU's libraries that are wheels, where only Python finds them."""
    ort.preload_dlls(directory="")
    if settings.gpu_provider == "tensorrt":
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("tensorrt_libs")


def choose_providers(
    available: list[str], settings: ServingSettings, *, gpu: bool, cache: str
) -> list[str | tuple[str, dict[str, Any]]]:
    """ONNX Runtime's providers to ask for, the first one first.

    `auto` is CUDA: TensorRT builds an engine of seconds to minutes for each new shape of the input, while
    requests wait.

    Args:
        available: those that the installed ONNX Runtime is built with.
        gpu: a GPU shall be used.
        cache: folder for TensorRT's engines; empty = none.

    Raises:
        GpuMissing: the installed ONNX Runtime is for CPUs, and a GPU is asked for.
    """
    if not gpu:
        return [_CPU]
    if _CUDA not in available:
        without_gpu(settings, "the installed ONNX Runtime is built for CPUs; onnxruntime-gpu is not")
        return [_CPU]
    if settings.gpu_provider != "tensorrt":
        return [_CUDA, _CPU]
    kept = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": cache,
    }
    return [(_TENSORRT, kept if cache else {}), _CUDA, _CPU]


def _check_providers(active: list[str], settings: ServingSettings, *, gpu: bool) -> None:
    """Refuse, or report, that ONNX Runtime left out a provider whose libraries it does not find."""
    if not gpu:
        return
    if settings.gpu_provider == "tensorrt" and _TENSORRT not in active:
        raise ConfigError(
            "TensorRT is asked for and cannot be used",
            why="ONNX Runtime does not find its libraries",
            hint="Build the image with gpu_provider=tensorrt, or set gpu_provider=cuda",
        )
    if _CUDA not in active:
        without_gpu(settings, "ONNX Runtime does not find the libraries of CUDA or cuDNN")


def _lend_external_data(options: Any, model: Path, stack: contextlib.ExitStack) -> None:
    """Hand over the files beside a model, which hold its weights, as mapped memory; `stack` holds the maps."""
    names, maps = [], []
    for path in sorted(model.parent.rglob("*")):
        if path.is_file() and path != model and path.stat().st_size:
            file = stack.enter_context(path.open("rb"))
            maps.append(stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
            names.append(path.relative_to(model.parent).as_posix())
    if names:
        options.add_external_initializers_from_files_in_memory(names, maps, [len(part) for part in maps])


class OnnxGraph:
    """An ONNX Runtime session whose runs can be ended from another thread.

    Attributes:
        packed: `run` takes packed rows, too.
    """

    interruptible = True

    def __init__(self, session: Any, outputs: list[str]) -> None:
        import onnxruntime as ort

        # The Python wrapper around the session checks names and owners of the feeds once more for each call,
        # which costs as much as a small model; the feeds are known to fit.
        self._run = getattr(session, "_sess", session).run
        self._outputs = outputs
        self._options = ort.RunOptions
        self._running: dict[int, tuple[float, Any]] = {}
        self.run: Callable[[Any, float], list[Any]] = self._run_plain
        self._bound: BoundRuns | None = None
        self.packed = session.get_providers() == [_CPU]
        if self.packed:
            self._bound = BoundRuns(session, outputs, self._run_plain)
            self.run = self._bound.run

    def _run_plain(self, feeds: Feeds, expires: float) -> list[Any]:
        """The outputs, in the servable's order."""
        options = self._options()
        key = id(options)
        self._running[key] = (expires, options)
        try:
            result: list[Any] = self._run(self._outputs, feeds, options)
        finally:
            del self._running[key]
        return result

    def expire(self, now: float) -> None:
        """End the runs whose `expires` has passed; each raises in its own thread."""
        for expires, options in list(self._running.values()):
            if now > expires:
                options.terminate = True
        if self._bound is not None:
            self._bound.expire(now)
