"""What int8 and structured pruning gain over PyTorch's eager mode, on one thread, interleaved in one run.

`pytest tests/benchmarks/conversion -m benchmark -s` prints the table and fails below the bars. Rounds of all
contenders take turns, and the best round of each counts, because noise only makes slower.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mlflow_deploy.bundle import SERVABLE, Feed, Output, Servable  # noqa: E402
from mlflow_deploy.conversion import precision_onnx  # noqa: E402
from mlflow_deploy.conversion.comparison import interleaved  # noqa: E402
from mlflow_deploy.conversion.graph import finish  # noqa: E402
from mlflow_deploy.conversion.pruning import prune  # noqa: E402
from mlflow_deploy.conversion.runners import open_graph  # noqa: E402

pytestmark = [pytest.mark.benchmark, pytest.mark.slow, pytest.mark.timeout(600)]

ROWS: list[tuple[str, str, str, str]] = []
BATCHES = (1, 64)
VNNI = any(name in Path("/proc/cpuinfo").read_text() for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
"""Whether the processor adds up 8-bit products in one instruction. Without that it takes three, and int8 has at
most twice the products per second of 32-bit floats: no 8-bit product of a large batch can then meet the bar."""


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the table at the end."""
    yield
    print("\n\n| measurement | result | bar | met |\n|---|---|---|---|")
    for row in ROWS:
        print("| " + " | ".join(row) + " |")
    print(f"\nInstructions for 8-bit products (VNNI): {'yes' if VNNI else 'no'}")
    print("`pytest tests/benchmarks/conversion -m benchmark -s`")


def report(what: str, gain: float, bar: float) -> None:
    """A line of the table; the test fails when the bar is not met."""
    ROWS.append((what, f"x{gain:.2f}", f"x{bar:.1f}", "yes" if gain >= bar else "**no**"))
    assert gain >= bar, f"{what}: x{gain:.2f}, bar x{bar:.1f}"


@pytest.fixture(scope="module")
def mlp() -> torch.nn.Module:
    """The MLP of the bars: 784-512-512-10."""
    torch.manual_seed(0)
    sizes = (784, 512, 512, 10)
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2]).eval()


@pytest.fixture(scope="module")
def gains(mlp: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], float]:
    """How many times faster than eager PyTorch each contender is, by name and rows."""
    folder = tmp_path_factory.mktemp("forms")
    rows = np.random.default_rng(0).normal(size=(320, 784)).astype(np.float32)
    fp32 = onnx_form(mlp, folder / "fp32", rows)
    source = precision_onnx.OnnxSource(
        fp32, folder / "fp32" / "model.onnx", [{"x": rows[at : at + 32]} for at in range(0, 320, 32)]
    )
    forms = {"ONNX fp32": (fp32, folder / "fp32")}
    for candidate in precision_onnx.candidates(source, "int8"):
        place = folder / candidate.label.replace(" ", "-")
        place.mkdir()
        forms[f"ONNX {candidate.label}"] = (candidate.build(place), place)
    graphs = {name: open_graph(*form) for name, form in forms.items()}
    small = prune(mlp, rows[:2], ratio=0.5).model
    graphs["ONNX pruned"] = open_graph(onnx_form(small, folder / "pruned", rows), folder / "pruned")
    found: dict[tuple[str, int], float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for batch in BATCHES:
            given, tensor = {"x": rows[:batch]}, torch.from_numpy(rows[:batch])
            calls: dict[str, Callable[[], object]] = {
                "eager": lambda tensor=tensor: mlp(tensor),
                "pruned": lambda tensor=tensor: small(tensor),
            }
            calls |= {name: lambda graph=graph, given=given: graph(given) for name, graph in graphs.items()}
            with torch.inference_mode():
                best = interleaved(calls, rounds=25)
            found |= {(name, batch): best["eager"] / us for name, us in best.items()}
    finally:
        torch.set_num_threads(threads)
    return found


def onnx_form(model: torch.nn.Module, folder: Path, rows: np.ndarray) -> Servable:
    """The graph of a network, written into a folder."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (torch.from_numpy(rows[:2]),), dynamo=True, verbose=False, input_names=["x"],
            output_names=["y"], dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )  # fmt: skip
    (folder / "model.onnx").write_bytes(finish(program.model_proto, ["y"]))
    return Servable(
        kind="onnx",
        path=f"{SERVABLE}/model.onnx",
        feeds=(Feed(name="x", dtype="float32", tensor="", shape=(-1, 784)),),
        outputs=(Output(name="y", dtype="float32"),),
    )


def int8(gains: dict[tuple[str, int], float], batch: int) -> float:
    """The gain of the way to int8 that is fastest over all batches, as `precision=int8` takes it."""
    names = {name for name, _ in gains if "int8" in name}
    taken = max(names, key=lambda name: math.prod(gains[name, rows] for rows in BATCHES))
    return gains[taken, batch]


def test_fp32_is_shown_for_scale(gains: dict[tuple[str, int], float]) -> None:
    for batch in BATCHES:
        report(f"ONNX fp32 over eager PyTorch, {batch} rows", gains["ONNX fp32", batch], 0.8)


def test_int8_is_three_times_faster_than_eager_at_one_row(gains: dict[tuple[str, int], float]) -> None:
    report("int8 over eager PyTorch, 1 row", int8(gains, 1), 3.0)


def test_int8_is_three_times_faster_than_eager_at_64_rows(gains: dict[tuple[str, int], float]) -> None:
    report("int8 over eager PyTorch, 64 rows", int8(gains, 64), 3.0)


@pytest.mark.parametrize("batch", BATCHES)
def test_half_the_neurons_are_1_7_times_faster(gains: dict[tuple[str, int], float], batch: int) -> None:
    gain = gains["ONNX pruned", batch] / gains["ONNX fp32", batch]
    report(f"half the neurons over all of them, both in ONNX Runtime, {batch} rows", gain, 1.7)


@pytest.mark.parametrize("batch", BATCHES)
def test_half_the_neurons_are_faster_in_eager_mode(gains: dict[tuple[str, int], float], batch: int) -> None:
    # Eager mode spends a part of each call in Python, which does not shrink.
    report(
        f"half the neurons over all of them, both in eager PyTorch, {batch} rows", gains["pruned", batch], 1.3
    )
