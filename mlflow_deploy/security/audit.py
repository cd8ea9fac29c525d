"""The audit of a model's files before anything is loaded: nothing in them is imported, called or unpacked."""

from __future__ import annotations

import io
import mmap
import os
import pickletools
import stat
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mlflow_deploy.errors import DataError
from mlflow_deploy.security import keras_audit, mlmodel_audit, onnx_audit
from mlflow_deploy.security.allowed_globals import FLAVORS, allowed_globals
from mlflow_deploy.security.archives import (
    HEAD_BYTES,
    ArchiveUnreadableError,
    Budget,
    LimitExceededError,
    Member,
    expand,
    kind_of,
    leads_outside,
    members,
)
from mlflow_deploy.security.errors import PickleUnreadable
from mlflow_deploy.security.findings import RULES, AuditReport, Finding
from mlflow_deploy.security.pickle_globals import (
    Global,
    is_pickle_file,
    npy_holds_objects,
    read_pickle,
    skops_globals,
)
from mlflow_deploy.security.requirements_audit import FILES as REQUIREMENT_FILES
from mlflow_deploy.security.requirements_audit import audit_requirements

_COMPRESSED = ("gzip", "bz2", "xz", "lzma", "zlib")
_OPCODES = frozenset(code.code.encode("latin1")[0] for code in pickletools.opcodes)
_MAYBE_PICKLE = (".bin", ".ckpt", ".p", ".sav")
"""Names that pickles have, and others too: such a file must be one only where it looks like one."""
_NATIVE = (".so", ".dll", ".dylib", ".pyd", ".pyc", ".whl", ".egg", ".exe")
_TEXT_BYTES = 16 << 20
_LEGACY_TORCH = 5
"""Pickles at the beginning of PyTorch's old format, which raw weights follow."""

_WHY = {
    "pickle-global": "no model of these flavors needs it; loading would import it and may call it",
    "keras-lambda": "a Lambda layer is Python bytecode that runs when the model is loaded or used",
    "keras-foreign-code": "loading imports it, or it is not a part of Keras",
    "hdf5-external": "it lies in another file, which is read when the model is loaded",
    "tensorflow-operator": "it reads or writes files, or runs Python, when the model is used",
    "onnx-external-data": "it leads out of the model folder, so that loading reads other files",
    "onnx-custom-operator": "it is done by a library that does not come with ONNX Runtime",
    "requirement-source": "it is installed from an address or a folder, which the model alone decides on",
    "requirement-index": "packages would come from an index or channel that the model decides on",
    "requirement-unreadable": "it is no plain requirement, so what it would install is not known",
    "model-code": "Python code that came with the model runs when it is loaded",
    "model-loader": "MLflow imports this module to load the model",
    "model-trust": "MLflow would let skops build this type without asking",
    "model-path": "it leads out of the model folder",
}


def audit_path(
    path: Path | str, *, flavor: str | None = None, accept: Collection[str] = (), budget: Budget | None = None
) -> AuditReport:
    """Look through a model folder, or one file, for what would do harm when it is loaded or installed.

    Args:
        path: a folder with or without MLmodel, or a file.
        flavor: the MLflow flavor whose globals may stand in pickles; default: those that MLmodel names, or
            all where there is none.
        accept: rules whose findings do not count, after somebody has reviewed them.
        budget: what is read out of archives and compressed files in all; by default 4 GiB.

    Raises:
        DataError: there is no such file, or a rule or flavor is not known.
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"There is nothing to audit at {root}", hint="Give a model folder or a file")
    for given, known, what in ((accept, RULES, "rule"), ([flavor] if flavor else [], FLAVORS, "flavor")):
        for name in given:
            if name not in known:
                raise DataError(
                    f"There is no audit {what} {name!r}", hint=f"Known: {', '.join(sorted(known))}"
                )
    audit = _Audit(root, flavor, budget or Budget())
    audit.run()
    found = [Finding(*finding, accepted=finding[2] in accept) for finding in sorted(audit.found)]
    return AuditReport(str(root), audit.flavors, audit.files, audit.pickles, tuple(found))


class _Audit:
    """One walk over a folder; collects findings."""

    def __init__(self, root: Path, flavor: str | None, budget: Budget) -> None:
        self._root, self._budget = root, budget
        self._document: Any = None
        self.found: set[tuple[str, str, str, str, str, str]] = set()
        self.files = self.pickles = 0
        if root.is_dir() and (root / "MLmodel").is_file() and not (root / "MLmodel").is_symlink():
            self._document = self._mlmodel()
        named = mlmodel_audit.flavors_of(self._document)
        known = tuple(name for name in named if name in FLAVORS)
        # Every list is harmless; a model of another flavor has none of its own.
        self.flavors = (flavor,) if flavor else known if named else FLAVORS
        self._allowed = allowed_globals(self.flavors)
        self._loaded_as_pickles = mlmodel_audit.pickles_of(self._document)

    def run(self) -> None:
        """Look at everything."""
        if not self._root.is_dir():
            self._file(self._root, self._root.name)
            return
        if self._document is not None:
            self._note_all("MLmodel", mlmodel_audit.audit_mlmodel(self._document, self._allowed))
        for folder, folders, files in os.walk(self._root, onerror=self._no_folder):
            for name in sorted([*folders, *files]):
                path = Path(folder) / name
                place = path.relative_to(self._root).as_posix()
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    self._note("symlink", place, f"a link to {path.readlink()}", "it may lead to any file")
                elif stat.S_ISREG(mode):
                    self._file(path, place)
                elif not stat.S_ISDIR(mode):
                    self._note(
                        "special-file", place, "a device, pipe or socket", "it is no content of a model"
                    )

    def _no_folder(self, error: OSError) -> None:
        place = os.path.relpath(str(error.filename), self._root)
        self._note("file-unreadable", place, "a folder that cannot be listed", str(error))

    def _note(self, rule: str, place: str, what: str, why: str) -> None:
        severity, hint = RULES[rule]
        self.found.add((place, severity, rule, what, why, hint))

    def _note_all(self, place: str, found: Iterable[tuple[str, str]]) -> None:
        for rule, what in found:
            self._note(rule, place, what, _WHY.get(rule, "so what it does is not known"))

    def _mlmodel(self) -> Any:
        import yaml

        try:
            return yaml.safe_load((self._root / "MLmodel").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
            self._note("mlmodel-unreadable", "MLmodel", "it is no YAML", str(error))
            return None

    # --- one file -----------------------------------------------------------------------------------------

    def _file(self, path: Path, place: str) -> None:
        try:
            with path.open("rb") as file:
                self._settings(path, place, file)
                self._content(file, place, place in self._loaded_as_pickles, 0, path.parent)
        except OSError as error:
            self._note("file-unreadable", place, "a file that cannot be read", str(error))

    def _settings(self, path: Path, place: str, file: BinaryIO) -> None:
        """What counts by its name, outside archives only."""
        if path.suffix.lower() in _NATIVE:
            self._note("code-file", place, "a library or program", "it runs when something loads it")
        if path.name in (*REQUIREMENT_FILES, "pickle_module_info.txt"):
            text = file.read(_TEXT_BYTES).decode("utf-8", "replace")
            file.seek(0)
            if path.name == "pickle_module_info.txt":
                self._note_all(place, mlmodel_audit.audit_pickle_module(text))
            else:
                self._note_all(place, audit_requirements(path.name, text))

    def _content(
        self, file: BinaryIO, place: str, strict: bool, depth: int, folder: Path | None = None
    ) -> None:
        """Look at a file or member by what it is; `strict` when it will be loaded as a pickle."""
        self.files += 1
        name = PurePosixPath(place.rpartition("!/")[2])
        suffix = name.suffix.lower()
        strict = strict or (is_pickle_file(Path(name)) and suffix not in _MAYBE_PICKLE)
        head = file.read(HEAD_BYTES)
        file.seek(0)
        kind = kind_of(head)
        if kind.startswith("unread:"):
            what = f"compressed with {kind.partition(':')[2]}"
            self._note("compression-unread", place, what, "its content is not read here")
        elif suffix == ".onnx":
            self._onnx(file, place, folder)
        elif suffix == ".pb":
            self._note_all(place, keras_audit.audit_saved_model(file.read()))
        elif kind in _COMPRESSED:
            self._compressed(kind, file, place, strict, depth)
        elif kind == "npy":
            self._npy(file, place)
        elif kind == "hdf5":
            self._note_all(place, keras_audit.audit_hdf5(file))
        elif kind != "zip":
            # The name of a tar archive's first member can be a pickle.
            if head and (strict or head[0] in _OPCODES):
                self._pickle(file, place, strict and kind != "tar")
            elif strict:
                self._note("pickle-unreadable", place, "an empty pickle", "it ends before it begins")
            file.seek(0)
        if kind in ("zip", "tar") or zipfile.is_zipfile(file):
            # A zip archive is found by its end: whatever else the file is, it can be one too.
            file.seek(0)
            self._archive("tar" if kind == "tar" else "zip", file, place, depth)

    def _onnx(self, file: BinaryIO, place: str, folder: Path | None) -> None:
        data: bytes | mmap.mmap
        if folder is None or os.fstat(file.fileno()).st_size == 0:
            data = file.read()
        else:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._note_all(place, onnx_audit.audit_onnx(data, folder))

    def _compressed(self, kind: str, file: BinaryIO, place: str, strict: bool, depth: int) -> None:
        if depth >= self._budget.depth:
            self._note("archive-too-deep", place, "an archive in too many others", "its content is not read")
            return
        try:
            content = expand(kind, file, self._budget)
        except LimitExceededError as error:
            self._note("archive-too-large", place, f"{kind} data", str(error))
        except ArchiveUnreadableError as error:
            # Texts and weights may begin as zlib and lzma data do.
            if strict or kind in ("gzip", "bz2", "xz"):
                self._note("archive-unreadable", place, f"{kind} data", str(error))
        else:
            self._content(io.BytesIO(content), f"{place}!/{_inner_name(place)}", strict, depth + 1)
        file.seek(0)

    def _npy(self, file: BinaryIO, place: str) -> None:
        file.seek(6)
        version = file.read(2)
        length = int.from_bytes(file.read(2 if version[:1] == b"\x01" else 4), "little")
        try:
            if npy_holds_objects(file.read(min(length, _TEXT_BYTES)), place):
                self._pickle(file, place, True)
        except PickleUnreadable as error:
            self._note("pickle-unreadable", place, "a numpy array", error.why)

    # --- archives -----------------------------------------------------------------------------------------

    def _archive(self, kind: str, file: BinaryIO, place: str, depth: int) -> None:
        if depth >= self._budget.depth:
            self._note("archive-too-deep", place, "an archive in too many others", "its content is not read")
            return
        try:
            with members(kind, file, self._budget) as listed:
                names = [member.name for member in listed]
                for name in (name for name, times in Counter(names).items() if times > 1):
                    self._note(
                        "duplicate-member", f"{place}!/{name}", "it is there twice", "readers take either"
                    )
                for member in listed:
                    self._member(member, place, names, depth)
        except LimitExceededError as error:
            self._note("archive-too-large", place, f"a {kind} archive", str(error))
        except ArchiveUnreadableError as error:
            self._note("archive-unreadable", place, f"a {kind} archive", str(error))

    def _member(self, member: Member, place: str, names: list[str], depth: int) -> None:
        inner = f"{place}!/{member.name}"
        if leads_outside(member.name):
            self._note(
                "unsafe-path", inner, "a name that leads outside", "unpacking writes to another folder"
            )
        if member.kind == "link":
            self._note("symlink", inner, "a link", "unpacked it may lead to any file")
        elif member.kind == "other":
            self._note("special-file", inner, "no plain file", "it is no content of a model")
        if member.kind != "file":
            return
        name = PurePosixPath(member.name)
        try:
            head = member.head()
            if name.name == "schema.json":
                self._skops(self._read(member), inner)
            elif name.name == "config.json" and (place.endswith(".keras") or "metadata.json" in names):
                self._note_all(inner, keras_audit.audit_keras_config(self._read(member)))
            elif (
                kind_of(head)
                or (head and head[0] in _OPCODES)
                or is_pickle_file(Path(name))
                or name.suffix.lower() in (".onnx", ".pb", ".zip")
            ):
                self._content(io.BytesIO(self._read(member)), inner, False, depth + 1)
            else:
                self.files += 1
        except ArchiveUnreadableError as error:
            self._note("archive-unreadable", inner, "a member of an archive", str(error))

    def _read(self, member: Member) -> bytes:
        try:
            with member.open() as file:
                return self._budget.read(file)
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
            raise ArchiveUnreadableError(str(error)) from error

    # --- pickles ------------------------------------------------------------------------------------------

    def _skops(self, schema: bytes, place: str) -> None:
        self.files += 1
        try:
            self._globals(skops_globals(schema, place), place)
        except PickleUnreadable as error:
            self._note("pickle-unreadable", place, "a skops schema", error.why)

    def _pickle(self, file: BinaryIO, place: str, strict: bool) -> None:
        reading = read_pickle(file, place)
        # A text or weights that begin with a letter that is an opcode end at once and take nothing.
        if not strict and not (reading.calls if reading.problem else reading.globals):
            return
        self.pickles += 1
        self._globals(reading.globals, place)
        if reading.problem:
            self._note(
                "pickle-unreadable", place, "a pickle that cannot be followed to its end", reading.problem
            )
        elif reading.trailing and reading.pickles < _LEGACY_TORCH:
            why = "loaders do not agree on what such a file is"
            self._note("pickle-trailing-data", place, "something follows the pickle", why)

    def _globals(self, found: Iterable[Global], place: str) -> None:
        for item in found:
            if item in self._allowed or self._is_torchscript(item, place):
                continue
            what = str(item) if item.known else "a name that is computed when it is loaded"
            self._note("pickle-global", place, what, _WHY["pickle-global"])

    def _is_torchscript(self, item: Global, place: str) -> bool:
        """TorchScript's classes are code in the same archive, in a language of its own."""
        return item.module.startswith("__torch__.") and "!/" in place


def _inner_name(place: str) -> str:
    """The name of what is compressed: without the last suffix where that tells the compression."""
    name = PurePosixPath(place.rpartition("!/")[2])
    return name.stem if name.suffix.lower() in (".gz", ".bz2", ".xz", ".lzma", ".z") else name.name
