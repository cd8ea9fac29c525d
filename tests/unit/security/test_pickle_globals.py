"""What pickles import, read without running them, against what the real unpicklers import."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import pickletools
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from joblib.numpy_pickle import NumpyUnpickler
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_deploy.security.errors import PickleUnreadable
from mlflow_deploy.security.pickle_globals import Global, pickle_globals
from mlflow_deploy.security.pickle_requirements import needs_of


@pytest.fixture(scope="module")
def model() -> Any:
    features, labels = load_wine(return_X_y=True, as_frame=True)
    features = features.assign(grape=np.where(features["alcohol"] > 13, "red", "white"))
    numbers = [name for name in features if name != "grape"]
    transformer = ColumnTransformer([("n", StandardScaler(), numbers), ("t", OneHotEncoder(), ["grape"])])
    return make_pipeline(transformer, RandomForestClassifier(3, max_depth=3)).fit(features, labels)


def imported_by(unpickler: type[Any], *arguments: Any) -> set[str]:
    """What an unpickler really imports."""
    seen: set[str] = set()

    class Recording(unpickler):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            seen.add(f"{module}.{name}")
            return super().find_class(module, name)

    Recording(*arguments).load()
    return seen


def names(source: Path | bytes) -> set[str]:
    return {str(item) for item in pickle_globals(source)}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(model: Any, protocol: int) -> None:
    content = pickle.dumps(model, protocol)
    assert names(content) == imported_by(pickle._Unpickler, io.BytesIO(content))


def test_objects_of_many_kinds() -> None:
    content = pickle.dumps(
        [
            pd.DataFrame({"a": [1.5, None], "b": ["x", "y"]}),
            {"set": {1, 2}, "path": Path("x"), "complex": 1j, "big": 1 << 100, "bytes": bytearray(b"x")},
            HistGradientBoostingClassifier(max_iter=2).fit([[1.0], [2.0]] * 10, [0, 1] * 10),
            np.array([("a", 1)], dtype=[("name", "U3"), ("n", "i4")]),
        ]
    )
    assert names(content) == imported_by(pickle._Unpickler, io.BytesIO(content))


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 1), ("lzma", 1)])
def test_joblib_with_arrays_between_the_opcodes(model: Any, tmp_path: Path, compress: Any) -> None:
    mixed = {
        "model": model,
        "floats": np.ones((3, 4)),
        "objects": np.array([Path("x"), None, "text"], dtype=object),
        "texts": np.array(["ab", "cde"]),
        "times": np.array(["2026-01-01"], dtype="M8[ns]"),
        "flags": np.array([True]),
        "records": np.array([(1, 2.0)], dtype=[("a", "i8"), ("b", "f4")]),
        "mixed": np.array([(1, None)], dtype=[("a", "i8"), ("b", "O")]),
        "empty": np.empty((0, 3)),
    }
    path = tmp_path / "model.joblib"
    joblib.dump(mixed, path, compress=compress)
    joblib.dump(mixed, tmp_path / "plain.joblib")
    plain = (tmp_path / "plain.joblib").open("rb")
    with plain:
        expected = imported_by(NumpyUnpickler, str(tmp_path / "plain.joblib"), plain, True)
    assert "pathlib.PosixPath" in expected
    assert names(path) == expected


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zlib.compress])
def test_compressed_pickles(model: Any, compress: Callable[[bytes], bytes]) -> None:
    content = pickle.dumps(model)
    assert names(compress(content)) == names(content)
    assert names(compress(compress(content))) == names(content)


def test_archives_and_numpy_files(tmp_path: Path, model: Any) -> None:
    objects = np.array([Path("x")], dtype=object)
    np.save(tmp_path / "objects.npy", objects)
    np.save(tmp_path / "records.npy", np.array([(1, Path("x"))], dtype=[("a", "i8"), ("b", "O")]))
    np.save(tmp_path / "numbers.npy", np.ones(3))
    np.savez(tmp_path / "both.npz", numbers=np.ones(3), objects=objects)
    assert "pathlib.PosixPath" in names(tmp_path / "objects.npy")
    assert "pathlib.PosixPath" in names(tmp_path / "records.npy")
    assert names(tmp_path / "numbers.npy") == set()
    assert "pathlib.PosixPath" in names(tmp_path / "both.npz")
    skops.io.dump(model, tmp_path / "model.skops")
    assert {"sklearn.pipeline.Pipeline", "sklearn.preprocessing._data.StandardScaler"} <= names(
        tmp_path / "model.skops"
    )


@pytest.mark.slow
def test_pytorch_files_new_and_old(tmp_path: Path) -> None:
    import torch

    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save(network, tmp_path / "new.pt")
    torch.save(network, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("new.pt", "old.pt"):
        assert {"torch.nn.modules.container.Sequential", "torch.nn.modules.linear.Linear"} <= names(
            tmp_path / name
        )


class Harmful:
    """Runs a command when it is loaded."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch /tmp/never",)


def test_harmful_calls_are_named_wherever_they_hide(tmp_path: Path) -> None:
    harmful = pickle.dumps(Harmful())
    joblib.dump({"deep": np.array([Harmful()], dtype=object)}, tmp_path / "deep.joblib", compress=3)
    hidden = {
        "plain": harmful,
        "gz": gzip.compress(harmful),
        "second stream": pickle.dumps("harmless") + harmful,
        "inst": b"(S'touch /tmp/never'\nios\nsystem\n.",
        "memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x01x\x85R.",
        "protocol 0": b"cos\nsystem\n(S'x'\ntR.",
    }
    for name, content in hidden.items():
        assert names(content) & {"os.system", "posix.system"}, name
    assert names(tmp_path / "deep.joblib") & {"posix.system"}


def test_computed_names_are_unknown_and_never_passed_over() -> None:
    computed = b"\x80\x04cbuiltins\nstr\n\x8c\x02os\x85R\x8c\x06system\x93."
    pickletools.dis(computed, out=io.StringIO())
    found = pickle_globals(computed)
    assert not all(item.known for item in found)
    assert Global("?", "?") in found


def test_nothing_is_imported(tmp_path: Path) -> None:
    content = pickle.dumps(Harmful()).replace(b"posix", b"antigravity"[:5])
    code = (
        "import sys\nfrom mlflow_deploy.security.pickle_globals import pickle_globals\n"
        f"print(sorted(map(str, pickle_globals({content!r}))))\nprint('antig' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['antig.system']", "False"]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x04", b"\x80\x04R.", b"PK\x03\x04junk", b"\x1f\x8bjunk"]
)
def test_what_cannot_be_read_is_an_error_and_not_clean(content: bytes) -> None:
    with pytest.raises(PickleUnreadable):
        pickle_globals(content)


def test_every_cut_of_a_real_pickle_is_noticed(model: Any) -> None:
    content = pickle.dumps(model)
    for length in range(0, len(content), max(1, len(content) // 200)):
        with pytest.raises(PickleUnreadable):
            pickle_globals(content[:length])


def test_needs_are_listed_with_their_packages(tmp_path: Path, model: Any) -> None:
    import sklearn

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.pkl").write_bytes(pickle.dumps(model))
    (tmp_path / "notes.txt").write_text("no pickle")
    found = needs_of(tmp_path)
    assert f"scikit-learn=={sklearn.__version__}" in found.requirements
    assert f"numpy=={np.__version__}" in found.requirements
    assert found.unprovided == ()
    (tmp_path / "own.pkl").write_bytes(b"cmy_company.models\nNet\n.")
    assert needs_of(tmp_path).unprovided == ("my_company.models",)
    # cloudpickle carries code along, which the globals show.
    (tmp_path / "lambda.pkl").write_bytes(cloudpickle.dumps(lambda x: x))
    assert any(item.module.startswith("cloudpickle") for item in needs_of(tmp_path).globals)
