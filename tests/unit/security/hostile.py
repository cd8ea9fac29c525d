"""Hostile pickles by what they try, made without running anything."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np


def call(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls a global with texts."""
    pushed = b"".join(b"X" + len(text.encode()).to_bytes(4, "little") + text.encode() for text in arguments)
    return b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"(" + pushed + b"tR."


def zipped(name: str, content: bytes) -> bytes:
    """A zip archive with one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def object_array(content: bytes) -> bytes:
    """A .npy file whose header hides its object type from a search for `'descr': '|O'`."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|b1", "fortran_order": False, "shape": (1,)})
    return out.getvalue().replace(b"'descr': '|b1'", b'"descr": "|O8"') + content


def hidden_in_array(module: str, name: str) -> bytes:
    """A joblib file whose array bytes are opcodes for pickle.load, as it has no padding before them."""
    wrapper = b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}("
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1I00\nI01\ntR"
    payload = call(module, name, "x")[2:]
    shape = b"(K" + bytes([len(payload)]) + b"t"
    state = (
        b"X\x05\x00\x00\x00shape" + shape + b"X\x05\x00\x00\x00dtype" + dtype
        + b"X\x1b\x00\x00\x00numpy_array_alignment_bytesN" + b"ub"
    )  # fmt: skip
    return wrapper + state + payload + b"."


SAMPLES: dict[str, tuple[str, bytes, str]] = {
    "plain": ("model.pkl", call("posix", "system", "id"), "posix.system"),
    "compressed": ("model.joblib", zlib.compress(call("builtins", "eval", "1")), "builtins.eval"),
    "nested": ("model.zip", zipped("a.zip", zipped("m.dat", call("os", "popen", "id"))), "os.popen"),
    "gzip": ("model.pkl.gz", gzip.compress(call("subprocess", "getoutput", "id")), "subprocess.getoutput"),
    "importlib": ("model.pkl", call("importlib", "import_module", "x"), "importlib.import_module"),
    "urllib": ("weights.txt", call("urllib.request", "urlopen", "http://localhost"), "urllib.request.urlopen"),
    "pydoc": ("model.pkl", call("pydoc", "pipepager", "x", "sh"), "pydoc.pipepager"),
    "f2py": ("model.pkl", call("numpy.f2py.crackfortran", "myeval", "1"), "numpy.f2py.crackfortran.myeval"),
    "resolve": ("model.pkl", call("pkgutil", "resolve_name", "os:system"), "pkgutil.resolve_name"),
    "object array": ("weights.npy", object_array(call("runpy", "run_path", "x")), "runpy.run_path"),
    "loader": ("net.pt", call("torch.storage", "_load_from_bytes", "x"), "torch.storage._load_from_bytes"),
    "array bytes": ("model.joblib", hidden_in_array("posix", "system"), "posix.system"),
    "old joblib": ("m.pkl", call("sklearn.externals.joblib", "load", "x"), "sklearn.externals.joblib.load"),
}  # fmt: skip
"""What it tries -> file name, content, the name that must be reported."""


def write_all(folder: Path) -> None:
    """Each sample in a folder of its own, so that names may repeat."""
    for number, (name, content, _) in enumerate(SAMPLES.values()):
        place = folder / str(number) / name
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
