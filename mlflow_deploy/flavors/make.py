"""From what the user gives to a form: an MLflow model, a native object with an example, or the form itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.bundle import (
    EXAMPLE,
    MANIFEST,
    PARITY,
    SCHEMA,
    SERVABLE,
    SIGNATURE,
    Bundle,
    FileEntry,
    Manifest,
    ModelSource,
    Output,
    Servable,
)
from mlflow_deploy.conversion.existing import flavor_name
from mlflow_deploy.errors import ConfigError, ConversionError, InvalidInput
from mlflow_deploy.flavors.base import Made
from mlflow_deploy.flavors.native import is_native, save_native
from mlflow_deploy.flavors.ports import plan_feeds
from mlflow_deploy.flavors.pyfunc import FormModel, named_arrays
from mlflow_deploy.serving.feeds import make_feeds
from mlflow_deploy.serving.signature import parse_signature

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

    from mlflow_deploy.conversion.validation import Validation
    from mlflow_deploy.flavors.base import Form, Port, SaveOptions
    from mlflow_deploy.serving.values import Array

_URI = re.compile(r"[a-z][a-z0-9+-]*:/")
_EXAMPLES = ("input_example.json", "serving_input_example.json")


def make(
    form: Form,
    model: Any,
    work: Path,
    folder: Path,
    meta: Model,
    options: SaveOptions,
    servable_options: Mapping[str, Any],
    precision: str = "fp32",
) -> Made:
    """Make a form and write signature and example into `meta` and `folder`.

    Args:
        model: an MLflow model's URI or folder; a model of a framework, with an input example; or an object or
            file that is already of this form.
        work: an empty folder for files on the way.
        folder: the model folder that is being written.
        meta: its MLmodel file.
        servable_options: options of the form's runtime.
        precision: what a model that is converted computes with.

    Raises:
        ConfigError: a lower precision for what is already of this form.
        ConversionError: the model cannot be brought into this form, or answers differently in it.
    """
    local = mlflow_folder(model)
    if local is None and not form.takes(model):
        if not is_native(model):
            raise ConversionError(
                f"A {type(model).__module__}.{type(model).__name__} cannot be saved as {form.name}",
                why="it is neither of this form nor a model of a framework that mlflow_deploy knows",
                hint=f"Give an MLflow model's URI or folder, a fitted model, or a {form.file}",
            )
        local = save_native(
            model,
            work / "native",
            input_example=options.get("input_example"),
            signature=options.get("signature"),
        )
    if local is not None:
        rows = _validation(local) if isinstance(model, str) and _URI.match(model) else None
        return _from_mlflow(
            form, local, work, folder, meta, options, servable_options, precision=precision, validation=rows
        )
    if precision != "fp32":
        raise ConfigError(
            f"A finished {form.name} model keeps its precision",
            why=f"precision={precision} was asked for",
            hint="Give the model that it was made from",
        )
    return _from_form(form, model, work, folder, meta, options, servable_options)


def mlflow_folder(model: Any) -> Path | None:
    """The local folder of an MLflow model, downloaded when `model` is a URI; None when it is something else."""
    if not isinstance(model, str | Path):
        return None
    if isinstance(model, str) and _URI.match(model):
        from mlflow.tracking.artifact_utils import _download_artifact_from_uri

        return Path(_download_artifact_from_uri(artifact_uri=model))
    return Path(model) if (Path(model) / "MLmodel").is_file() else None


# --- from an MLflow model ----------------------------------------------------------------------------------


def _from_mlflow(
    form: Form,
    local: Path,
    work: Path,
    folder: Path,
    meta: Model,
    options: SaveOptions,
    servable_options: Mapping[str, Any],
    *,
    precision: str,
    validation: Validation | None,
) -> Made:
    from msgspec import structs

    from mlflow_deploy.conversion import make_servable
    from mlflow_deploy.conversion.native import read_meta

    native = read_meta(local)
    converted = work / "converted"
    converted.mkdir()
    done = make_servable(local, converted, format=form.name, precision=precision, validation=validation)
    meta.signature = options.get("signature") or native.signature
    if native.saved_input_example_info:
        meta.saved_input_example_info = native.saved_input_example_info
        for name in _EXAMPLES:
            if (local / name).is_file():
                shutil.copyfile(local / name, folder / name)
    servable = done.servable
    if servable_options:
        servable = structs.replace(servable, options={**servable.options, **servable_options})
    return Made(
        content=done.content,
        servable=servable,
        source=source_of(local, native),
        documents={
            SIGNATURE: done.signature,
            EXAMPLE: done.example,
            PARITY: done.parity.to_dict() if done.parity else None,
        },
        notes=done.notes,
    )


def _validation(folder: Path) -> Validation | None:
    """The validation rows of the run that made a logged model."""
    from mlflow_deploy.conversion.native import read_meta
    from mlflow_deploy.conversion.validation import from_run

    run_id = read_meta(folder).run_id
    return from_run(run_id) if run_id else None


def source_of(folder: Path, meta: Model) -> ModelSource:
    """What a form was made from; its digest is that of the native model's own files."""
    from mlflow_deploy.conversion.existing import native_digest

    return ModelSource(
        uri=f"models:/{meta.model_id}" if meta.model_id else "",
        model_id=meta.model_id or "",
        run_id=meta.run_id or "",
        flavors=tuple(sorted(meta.flavors)),
        mlflow_version=str(meta.mlflow_version or ""),
        digest=native_digest(folder),
    )


# --- from an object or file of the form --------------------------------------------------------------------


def _from_form(
    form: Form,
    model: Any,
    work: Path,
    folder: Path,
    meta: Model,
    options: SaveOptions,
    servable_options: Mapping[str, Any],
) -> Made:
    import mlflow
    from mlflow.models.utils import _save_example

    content = work / SERVABLE
    content.mkdir()
    path = content / form.file
    form.write(model, path)
    example = None
    if options.get("input_example") is not None:
        example = _save_example(meta, options["input_example"], str(folder))
    signature = options.get("signature")
    inputs = _input_signature(signature, example)
    ports = form.inputs(path)
    feeds = plan_feeds(form.name, ports, parse_signature(inputs))
    servable = Servable(
        kind=form.name,
        path=f"{SERVABLE}/{form.file}",
        feeds=feeds,
        requirements=form.requirements,
        options=dict(servable_options),
    )
    data = None if example is None else example.inference_data
    arrays = None if data is None else _feed_arrays(servable, inputs, work, data)
    outputs = _known(form, form.outputs(path, arrays))
    servable = _with_outputs(servable, outputs, ports)
    draft = draft_bundle(work, servable, {SIGNATURE: inputs})
    loaded = _loaded(form, draft)
    if signature is None and example is not None:
        signature = _inferred(form, example, loaded)
    if signature is not None:
        meta.signature = signature
    document = None if signature is None else _document(signature)
    request = None if example is None else _answered(meta, loaded, folder)
    source = ModelSource(uri="", flavors=(flavor_name(form.name),), mlflow_version=str(mlflow.__version__))
    return Made(content, servable, source, {SIGNATURE: document, EXAMPLE: request})


def _input_signature(signature: ModelSignature | None, example: Any) -> dict[str, Any] | None:
    from mlflow.models import infer_signature

    from mlflow_deploy.conversion.native import quiet

    if signature is None and example is not None:
        with quiet():
            signature = infer_signature(example.inference_data)
    return None if signature is None else {**_document(signature), "outputs": None}


def _document(signature: ModelSignature) -> dict[str, Any]:
    import json

    fields = signature.to_dict()
    return {
        key: None if fields.get(key) is None else json.loads(fields[key])
        for key in ("inputs", "outputs", "params")
    }


def draft_bundle(work: Path, servable: Servable, documents: Mapping[str, Any]) -> Bundle:
    """A bundle over files that are already in `work`, without digests: enough to load it."""
    import msgspec

    files = {}
    for name, document in documents.items():
        if document is not None:
            encoded = msgspec.json.encode(document)
            (work / name).write_bytes(encoded)
            files[name] = FileEntry(sha256="", bytes=len(encoded))
    manifest = Manifest(schema=SCHEMA, model=ModelSource(uri=""), servable=servable, files=files)
    return Bundle(path=work, manifest=manifest, digest=MANIFEST)


def _feed_arrays(
    servable: Servable, signature: dict[str, Any] | None, work: Path, data: Any
) -> dict[str, Array]:
    """The form's inputs for the input example."""
    feeds = make_feeds(servable.feeds, parse_signature(signature), max_rows=1 << 30)
    by_columns = all(feed.columns for feed in servable.feeds)
    if by_columns:
        names = [str(name) for name in feeds.names]  # type: ignore[union-attr]
        columns = named_arrays(draft_bundle(work, servable, {}), data, names)
        return feeds.from_columns(columns)[0]  # type: ignore[union-attr]
    tensors = feeds.tensors  # type: ignore[union-attr]
    names = [tensor.name or "inputs" for tensor in tensors]
    arrays = named_arrays(draft_bundle(work, servable, {}), data, names)
    return feeds.from_arrays({t.name: arrays[t.name or "inputs"] for t in tensors})[0]  # type: ignore[union-attr]


def _known(form: Form, ports: Sequence[Port]) -> list[Port]:
    if not ports or any(port.dtype is None for port in ports):
        raise ConversionError(
            f"The outputs of this {form.name} model are not known",
            why="the form does not tell them, and there is no example to run it on",
            hint="Give an input_example",
        )
    return list(ports)


def _with_outputs(servable: Servable, outputs: Sequence[Port], inputs: Sequence[Port]) -> Servable:
    from msgspec import structs

    free = all(
        port.shape is None or port.shape[:1] == (-1,) for port in (*inputs, *outputs) if port.shape != ()
    )
    return structs.replace(
        servable,
        outputs=tuple(Output(name=port.name, dtype=str(port.dtype)) for port in outputs),
        answer="array" if len(outputs) == 1 else "dict",
        batchable=free,
    )


def _loaded(form: Form, draft: Bundle) -> FormModel:
    from mlflow_deploy.errors import DeployError

    try:
        return FormModel(draft)
    except DeployError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise ConversionError(f"The {form.name} model cannot be loaded", why=why) from error


def _inferred(form: Form, example: Any, loaded: FormModel) -> ModelSignature:
    from mlflow.models.signature import _infer_signature_from_input_example

    from mlflow_deploy.conversion.native import quiet

    try:
        loaded.predict(example.inference_data)
    except Exception as error:
        raise InvalidInput(
            f"The {form.name} model refuses its own input example", why=" ".join(str(error).split())[:300]
        ) from error
    with quiet():
        signature: ModelSignature | None = _infer_signature_from_input_example(example, loaded)
    if signature is None:
        raise InvalidInput("The signature cannot be inferred from the input example", hint="Give a signature")
    return signature


def _answered(meta: Model, loaded: FormModel, folder: Path) -> dict[str, Any] | None:
    """The example as a request, with the answer that MLflow's scoring server gives."""
    from mlflow.pyfunc import PyFuncModel

    from mlflow_deploy.conversion.native import NativeModel, example_document, quiet

    with quiet():
        pyfunc = PyFuncModel(model_meta=_with_loader(meta), model_impl=loaded)
        return example_document(NativeModel(folder=folder, meta=meta, pyfunc=pyfunc))


def _with_loader(meta: Model) -> Model:
    from copy import copy

    described = copy(meta)
    described.flavors = {**meta.flavors, "python_function": {"loader_module": "mlflow_deploy.flavors"}}
    return described
