"""MLflow flavor for encrypted models: any of the other forms, opened in memory only.

The key comes from `model_config={"seal_key": SOURCE}`, from `-C serving.seal_key=SOURCE` of a deployment, or
from the source that the environment variable MLFLOW_DEPLOY_SEAL_KEY names. See docs/sealing.md.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from msgspec import structs

from mlflow_deploy.bundle import EXAMPLE, PARITY, SERVABLE, SIGNATURE, Bundle, Servable
from mlflow_deploy.conversion.existing import FORMS
from mlflow_deploy.errors import ConfigError, ModelNotFound
from mlflow_deploy.flavors import base
from mlflow_deploy.flavors.base import Folder, LogOptions, Made, SaveOptions
from mlflow_deploy.flavors.pyfunc import FormModel, load_pyfunc
from mlflow_deploy.flavors.table import FORMS as FORM_NAMES
from mlflow_deploy.flavors.table import form_named
from mlflow_deploy.security.keys import Key, read_key
from mlflow_deploy.security.sealing import open_sealed, rewrap, seal
from mlflow_deploy.serving.sealed import in_the_clear

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

FLAVOR_NAME = "mlflow_deploy.sealed"
FILE = "model.sealed"
_REQUIREMENT = "cryptography>=50"


def save_model(
    model: Any,
    path: str | Path,
    *,
    keys: str | Sequence[str],
    form: str = "",
    **options: Unpack[SaveOptions],
) -> None:
    """Save a model encrypted.

    Signature, input example and parity report stay readable, so that it is deployed without the key.

    Args:
        model: whatever the flavor of `form` takes: the URI or folder of an MLflow model, a fitted model with
            `input_example`, or an object or file of the form.
        path: where to; must not exist or be empty.
        keys: sources of the keys that open it, as `file:PATH`, `env:NAME` or `command:PROGRAM`: RSA public
            keys, or 256-bit secrets.
        form: the form inside; by default the one that `model` has, or else ONNX.
        options: MLflow's own: `input_example`, `signature`, `pip_requirements`, `metadata`...

    Raises:
        ConfigError: the form is unknown, or pyfunc, which would lie on a disk in plaintext.
        SealError: a key cannot be had.
        ConversionError: the model cannot be brought into the form.
    """
    from mlflow_deploy.flavors.make import make

    if form == "pyfunc":
        raise ConfigError(
            "A model cannot be sealed as pyfunc",
            why="MLflow loads native models from a folder on the disk, imports code from there, and may read "
            "its files at any later time",
            hint=f"Seal one of its other forms, which open in memory: {', '.join(FORM_NAMES)}",
        )
    sealing = read_keys(keys)
    inner = form_named(form or _form_of(model))
    folder = Folder.begin(path, options)
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-flavor-") as work:
        plain = make(inner, model, Path(work), folder.path, folder.meta, options, {})
        content = Path(work) / "sealed"
        content.mkdir()
        files = {
            f"{SERVABLE}/{file.relative_to(plain.content).as_posix()}": file
            for file in sorted(plain.content.rglob("*"))
            if file.is_file()
        }
        seal(files, content / FILE, sealing)
        folder.put("sealed", _sealed(plain, content))
    requirements = base.default_requirements(inner, "cryptography")
    folder.finish("sealed", requirements, {"keys": [key.id for key in sealing]})


def _sealed(plain: Made, content: Path) -> Made:
    """A form whose content was replaced by a sealed file."""
    servable = structs.replace(
        plain.servable,
        sealed=f"{SERVABLE}/{FILE}",
        requirements=(*plain.servable.requirements, _REQUIREMENT),
    )
    return Made(content, servable, plain.source, plain.documents, plain.notes)


def log_model(
    model: Any, *, keys: str | Sequence[str], form: str = "", **options: Unpack[LogOptions]
) -> ModelInfo:
    """Log a model encrypted; arguments as of `save_model`, `name`, `registered_model_name`..."""
    # MLflow would load the model to try its example, which needs a key that only the server should have.
    options.setdefault("validate_serving_input", False)
    return base.log(sys.modules[__name__], model, options, keys=keys, form=form)


def load_model(model_uri: str | Path, dst_path: str | None = None, *, key: str = "") -> Any:
    """What the flavor of the form inside loads, such as an `onnxruntime.InferenceSession`.

    Args:
        key: source of the key; empty for the one that MLFLOW_DEPLOY_SEAL_KEY names.

    Raises:
        WrongKey, SealTampered, SealTruncated: the file is not opened.
    """
    with in_the_clear(base.load_form(model_uri, "sealed", dst_path), key) as readable:
        return form_named(readable.manifest.servable.kind).open(readable)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> FormModel:
    return load_pyfunc(path, model_config)


def get_default_pip_requirements(form: str = "onnx") -> list[str]:
    """What models of this flavor need: this package, cryptography, and the runtime of the form inside."""
    return base.default_requirements(form_named(form), "cryptography")


def get_default_conda_env(form: str = "onnx") -> dict[str, Any]:
    """The conda environment with these requirements."""
    return base.default_conda_env(form_named(form), "cryptography")


def read_keys(sources: str | Sequence[str]) -> list[Key]:
    """The keys at one or more sources.

    Raises:
        KeyUnavailable: a source gives no key.
        ConfigError: no source at all.
    """
    listed = [sources] if isinstance(sources, str) else list(sources)
    if not listed or not all(listed):
        raise ConfigError("A sealed model needs a key", hint="Make one with: mlflow-deploy keys new")
    return [read_key(source) for source in listed]


def _form_of(model: Any) -> str:
    """The form that a model already has, or ONNX."""
    from mlflow_deploy.conversion.native import read_meta
    from mlflow_deploy.flavors.make import mlflow_folder

    local = mlflow_folder(model)
    if local is None:
        return next((name for name in FORM_NAMES if form_named(name).takes(model)), "onnx")
    flavors = read_meta(local).flavors
    loader = str(flavors["python_function"].get("loader_module", ""))
    own = loader.removeprefix("mlflow_deploy.flavors.")
    if own == "sealed":
        raise ConfigError(
            "The model is already sealed", hint="Give it other keys with: mlflow-deploy keys rotate"
        )
    return own if own in FORM_NAMES else "onnx"


# --- other keys, and back to plaintext ---------------------------------------------------------------------


def rotate(
    model: str | Path, output: Path, *, key: str, keys: str | Sequence[str], reencrypt: bool = False
) -> None:
    """Write a copy of a sealed model that other keys open.

    Args:
        model: URI or folder of a sealed model.
        output: folder for the copy; must not exist.
        key: source of a key that opens it now.
        keys: sources of the keys that open the copy; the old one does not.
        reencrypt: encrypt the content again under a new data key, in memory. Without it the data key stays, so
            that whoever once read it can read the copy too.

    Raises:
        SealError: the model cannot be opened with `key`.
    """
    old, new = read_key(key), read_keys(keys)

    def change(bundle: Bundle, content: Path) -> Servable:
        sealed = bundle.path / bundle.manifest.servable.sealed
        if reencrypt:
            with open_sealed(sealed, old) as opened:
                files = {name: Path(opened.path(name)) for name in opened.names}
                seal(files, content / FILE, new)
        else:
            rewrap(sealed, old, new, output=content / FILE)
        return bundle.manifest.servable

    _rewrite(model, output, change, name="sealed", conf={"keys": [item.id for item in new]})


def unseal(model: str | Path, output: Path, *, key: str) -> None:
    """Write a copy of a sealed model in plaintext, as a model of the flavor inside.

    Args:
        model: URI or folder of a sealed model.
        output: folder for the copy; must not exist.
        key: source of a key that opens it.

    Raises:
        SealError: the model cannot be opened with `key`.
    """
    opening = read_key(key)

    def change(bundle: Bundle, content: Path) -> Servable:
        servable = bundle.manifest.servable
        with open_sealed(bundle.path / servable.sealed, opening) as opened:
            for name in opened.names:
                target = content / Path(name).relative_to(SERVABLE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(opened.path(name), target)
        kept = tuple(line for line in servable.requirements if line != _REQUIREMENT)
        return structs.replace(servable, sealed="", requirements=kept)

    _rewrite(model, output, change, name="", conf={})


def _rewrite(
    model: str | Path,
    output: Path,
    change: Callable[[Bundle, Path], Servable],
    *,
    name: str,
    conf: Mapping[str, Any],
) -> None:
    """Copy a model folder with another form in place of the sealed one; `name` empty names it by its kind."""
    from mlflow_deploy.conversion.native import read_meta
    from mlflow_deploy.flavors.add import write_meta
    from mlflow_deploy.flavors.base import add_section, put_form
    from mlflow_deploy.flavors.make import mlflow_folder

    local = mlflow_folder(model)
    if local is None:
        raise ModelNotFound(str(model), why="it is neither a model folder nor a URI")
    bundle = base.load_form(local, "sealed")
    name = name or bundle.manifest.servable.kind
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".new-") as work:
        content, folder = Path(work) / "content", Path(work) / "model"
        content.mkdir()
        shutil.copytree(local, folder, ignore=shutil.ignore_patterns(FORMS, "__pycache__"))
        servable = change(bundle, content)
        documents = {part: bundle.document(part) for part in (SIGNATURE, EXAMPLE, PARITY)}
        manifest = bundle.manifest
        made = Made(content, servable, manifest.model, documents, manifest.notes)
        meta = read_meta(folder)
        del meta.flavors[FLAVOR_NAME]
        meta.flavors["python_function"] |= {
            "loader_module": f"mlflow_deploy.flavors.{name}", "data": f"{FORMS}/{name}",
        }  # fmt: skip
        add_section(meta, name, put_form(folder, name, made), **conf)
        write_meta(folder, meta)
        folder.chmod(0o755)
        folder.rename(output)
