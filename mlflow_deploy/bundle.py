"""The bundle: an immutable, content-addressed folder with a servable, its signature, evidence and digests.

Layout::

    sha256-<hex>/
      bundle.json       the manifest; its digest is the folder's name
      servable/         model.onnx, or a whole MLflow model folder for pyfunc, or another servable
      signature.json    inputs, outputs and params of the MLflow signature, as MLflow's JSON (optional)
      example.json      a request body for /invocations and the native model's answer (optional)
      parity.json       how the servable's answers compare with the native model's (optional)
      profile.json      reference profile for drift monitors (optional)

What an image contains, what the local target runs and what an edge device gets is this folder. It holds no
times and no host names, so that the same model gives the same digest.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlflow_deploy.errors import BundleCorrupt, StateWriteFailed
from mlflow_deploy.files import publish_folder, sha256_file

SCHEMA = 1
MANIFEST = "bundle.json"
SIGNATURE = "signature.json"
EXAMPLE = "example.json"
PARITY = "parity.json"
PROFILE = "profile.json"
SERVABLE = "servable"


class Feed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one input of the servable's graph is made from a request.

    Attributes:
        name: the graph's input.
        dtype: numpy dtype name of the input tensor, or `str`.
        columns: DataFrame columns stacked, in this order, to shape [rows, len(columns)]; empty for a tensor.
        tensor: the tensor of the MLflow signature that is fed; the empty string is the unnamed one.
        shape: shape of the tensor, -1 for free dimensions.
        missing: what a missing value becomes before it is fed; None stands for NaN.
        accepts: what the native model takes here, and so what the server lets through, because a graph would
            answer anything: `all`; `nan` for missing values but not Infinity; `finite` for neither.
    """

    name: str
    dtype: str
    columns: tuple[str, ...] = ()
    tensor: str | None = None
    shape: tuple[int, ...] = (-1,)
    missing: str | int | float | None = None
    accepts: Literal["all", "nan", "finite"] = "all"


class Output(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one output of the servable's graph becomes a part of the answer.

    Attributes:
        name: the graph's output.
        column: its key in a `columns` answer; None in an `array` answer.
        dtype: numpy dtype name of the native model's answer, `str` for text.
        squeeze: drop the last dimension of size one: [rows, 1] becomes [rows].
    """

    name: str
    dtype: str
    column: str | None = None
    squeeze: bool = False


class Servable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of a bundle that a server runs.

    Attributes:
        kind: the form: onnx, pyfunc, torchscript, torch_export, savedmodel, tflite or pmml.
        path: file or folder relative to the bundle.
        feeds: how graph inputs are made; empty for pyfunc, which takes what MLflow's signature says.
        outputs: graph outputs that make the answer, in order.
        answer: `array` answers {"predictions": [...]} from the one output; `columns` answers a list of
            records, as a DataFrame does; `dict` answers a mapping from name to array.
        batchable: rows of separate requests may be stacked into one call.
        precision: fp32, fp16 or int8.
        requirements: what the server process must have installed, as pip requirement lines.
        options: how the form's runtime is set up, in the words of its flavor; empty for its defaults.
        classes: names of the classes whose probabilities the only output gives, in its order; empty when it
            gives none, or nobody knows.
        sealed: encrypted file, relative to the bundle, that holds what is at `path` when it is opened; empty
            for a servable in the clear.
    """

    kind: str
    path: str
    feeds: tuple[Feed, ...] = ()
    outputs: tuple[Output, ...] = ()
    answer: Literal["array", "columns", "dict"] = "array"
    batchable: bool = True
    precision: str = "fp32"
    requirements: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    sealed: str = ""


def class_name(value: Any) -> str:
    """One name per class, whatever type it came in: 1, 1.0 and True are all '1'."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)


class ModelSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the bundle's model came from.

    Attributes:
        uri: the URI after stage and alias were resolved, so it names one fixed version.
        name: registered model name, empty when the model is not registered.
        version: version number, empty when the model is not registered.
        model_id: MLflow's `m-...` id, empty for models of older MLflow versions.
        run_id: run that logged the model, empty when unknown.
        flavors: flavors found in the MLmodel file.
        mlflow_version: the MLflow that logged it.
        digest: SHA-256 over the model folder's files.
    """

    uri: str
    name: str = ""
    version: str = ""
    model_id: str = ""
    run_id: str = ""
    flavors: tuple[str, ...] = ()
    mlflow_version: str = ""
    digest: str = ""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file's SHA-256 (hexadecimal) and size in bytes."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bundle's own description, stored as `bundle.json`.

    Attributes:
        fallback: why the servable is pyfunc although a faster form was wanted; empty when it was not.
        rejected: for each form that was tried and not taken, the reason.
        notes: what the user should know, such as validation rows that could not be read.
        files: every file of the bundle but the manifest itself, by path relative to the bundle.
    """

    schema: int
    model: ModelSource
    servable: Servable
    fallback: str = ""
    rejected: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    files: dict[str, FileEntry] = {}

    @property
    def format(self) -> str:
        """The servable's form, in the words of `-C format=`."""
        return self.servable.kind


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on this machine.

    Attributes:
        path: the bundle's folder.
        manifest: its description.
        digest: `sha256-<hex>` of the manifest, which holds the digests of all other files.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def servable_path(self) -> Path:
        """The servable's file or folder."""
        return self.path / self.manifest.servable.path

    def document(self, name: str) -> Any | None:
        """The JSON document `name` of the bundle (`signature.json`, ...), or None when it has none."""
        path = self.path / name
        if name not in self.manifest.files:
            return None
        try:
            return msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise BundleCorrupt(self.path, f"{name} cannot be read: {error}") from error

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.manifest.files.values())


def _encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def _digest(manifest_bytes: bytes) -> str:
    return "sha256-" + hashlib.sha256(manifest_bytes).hexdigest()


def write_bundle(
    store: Path,
    *,
    model: ModelSource,
    servable: Servable,
    content: Path,
    documents: Mapping[str, Any],
    fallback: str = "",
    rejected: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> Bundle:
    """Write a bundle into the folder `store` and return it; a bundle with the same content is reused.

    Args:
        store: folder that holds bundles, one folder per digest.
        content: folder whose files become `servable/`; it is copied, never changed.
        documents: JSON documents by file name (`signature.json`, `example.json`, ...); None is left out.

    Raises:
        StateWriteFailed: the disk is full or the store cannot be written; nothing is left behind.
    """
    staging: Path | None = None
    try:
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        staging = Path(tempfile.mkdtemp(dir=store, prefix=".new-"))
        shutil.copytree(content, staging / SERVABLE)
        for name, document in documents.items():
            if document is not None:
                encoded = msgspec.json.encode(document, order="sorted")
                (staging / name).write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
        manifest = Manifest(
            schema=SCHEMA,
            model=model,
            servable=servable,
            fallback=fallback,
            rejected=dict(rejected or {}),
            notes=notes,
            files=_file_entries(staging),
        )
        encoded = _encode_manifest(manifest)
        (staging / MANIFEST).write_bytes(encoded)
        digest = _digest(encoded)
        publish_folder(staging, store / digest)
    except OSError as error:
        raise StateWriteFailed(store, error.strerror or str(error)) from error
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging, ignore_errors=True)
    return Bundle(path=store / digest, manifest=manifest, digest=digest)


def read_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Read the bundle in the folder `path`.

    Args:
        verify: compare every file with its digest in the manifest, and refuse files it does not name.

    Raises:
        BundleCorrupt: a file is missing, changed, or not in the manifest, or the manifest cannot be read.
    """
    try:
        encoded = (path / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(encoded, type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleCorrupt(path, f"{MANIFEST} cannot be read: {error}") from error
    if manifest.schema != SCHEMA:
        raise BundleCorrupt(path, f"it has schema {manifest.schema}, this version reads schema {SCHEMA}")
    digest = _digest(encoded)
    if path.name.startswith("sha256-") and path.name != digest:
        raise BundleCorrupt(path, f"{MANIFEST} was changed: its digest is {digest}")
    if verify:
        found = _file_entries(path)
        for name in sorted(manifest.files.keys() | found.keys()):
            if name not in found:
                raise BundleCorrupt(path, f"{name} is missing")
            if name not in manifest.files:
                raise BundleCorrupt(path, f"{name} is not in the manifest")
            if manifest.files[name] != found[name]:
                raise BundleCorrupt(path, f"{name} was changed")
    return Bundle(path=path, manifest=manifest, digest=digest)


def folder_digest(path: Path) -> str:
    """`sha256-<hex>` over the names and contents of all files in a folder."""
    entries = {name: entry.sha256 for name, entry in _file_entries(path).items()}
    return _digest(msgspec.json.encode(entries, order="sorted"))


def _file_entries(root: Path) -> dict[str, FileEntry]:
    entries: dict[str, FileEntry] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            raise BundleCorrupt(root, f"{name} is a symbolic link, which could point outside the bundle")
        if path.is_file() and name != MANIFEST:
            entries[name] = FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)
    return entries
