"""What all flavors share: save, log and load a model folder that holds a form as a bundle.

Layout of a model folder::

    MLmodel                 python_function is loaded by `mlflow_deploy.flavors.<form>`
    forms/<form>/           a bundle: manifest with digests, servable, signature, example, parity report
    input_example.json ...  MLflow's own files

`forms/` may also stand beside a native flavor; see `flavors.add`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import yaml

from mlflow_deploy.bundle import Bundle, ModelSource, Servable, read_bundle, write_bundle
from mlflow_deploy.conversion.existing import FORMS, flavor_name
from mlflow_deploy.errors import DeployError, ModelCorrupt
from mlflow_deploy.files import publish_folder

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import ModelInfo

    from mlflow_deploy.serving.values import Array


MODEL_CONFIG: Mapping[str, Any] = {"intra_op_threads": 1, "spinning": False, "seal_key": ""}
"""What `model_config=` of `mlflow.pyfunc.load_model` may set, with its defaults; as in `-C serving.KEY`."""


class SaveOptions(TypedDict, total=False):
    """MLflow's options of `save_model`; they mean what they mean in MLflow's own flavors."""

    conda_env: dict[str, Any] | str | None
    code_paths: list[str] | None
    mlflow_model: Model | None
    signature: ModelSignature | None
    input_example: Any
    pip_requirements: list[str] | str | None
    extra_pip_requirements: list[str] | str | None
    metadata: dict[str, Any] | None
    validate_serving_input: bool


class LogOptions(SaveOptions, total=False):
    """MLflow's options of `log_model`."""

    name: str | None
    registered_model_name: str | None
    await_registration_for: int
    run_id: str | None
    params: dict[str, Any] | None
    tags: dict[str, Any] | None
    model_type: str | None
    step: int
    model_id: str | None


@dataclass(frozen=True)
class Port:
    """An input or output of a form.

    Attributes:
        name: its name in the form.
        dtype: numpy dtype name, `str` for text; None when the form does not tell.
        shape: -1 for free dimensions; None when the form does not tell.
    """

    name: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Form:
    """What differs from flavor to flavor.

    Attributes:
        name: the form, in the words of `-C format=`.
        file: name of the file or folder that holds it.
        extra: the extra of this package that installs what it needs.
        packages: pip packages of its runtime; pinned to what is installed when a model is saved.
        requirements: what a server needs, as requirement lines of the servable.
        takes: whether an object or a path is already of this form.
        write: writes such an object, or copies such a path, to the given file or folder.
        inputs: the form's inputs.
        outputs: the form's outputs, in order, found by running it on the arrays where it does not tell itself.
        open: what `load_model` returns, from a bundle that is in the clear.
    """

    name: str
    file: str
    extra: str
    packages: tuple[str, ...]
    requirements: tuple[str, ...]
    takes: Callable[[Any], bool]
    write: Callable[[Any, Path], None]
    inputs: Callable[[Path], Sequence[Port]]
    outputs: Callable[[Path, Mapping[str, Array] | None], Sequence[Port]]
    open: Callable[[Bundle], Any]


@dataclass(frozen=True)
class Made:
    """A form that is ready to be put into a model folder.

    Attributes:
        content: folder whose files become the bundle's `servable/`.
        servable: what a server runs.
        source: what it was made from.
        documents: the bundle's JSON documents by file name.
        notes: what the user should know.
    """

    content: Path
    servable: Servable
    source: ModelSource
    documents: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def save(
    form: Form,
    model: Any,
    path: str | Path,
    options: SaveOptions,
    *,
    servable_options: Mapping[str, Any] | None = None,
    precision: str = "fp32",
) -> None:
    """Save a model as a folder of the form's flavor; see the flavors' `save_model`."""
    from mlflow_deploy.flavors.make import make

    folder = Folder.begin(path, options)
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-flavor-") as work:
        made = make(
            form, model, Path(work), folder.path, folder.meta, options, servable_options or {}, precision
        )
        folder.put(form.name, made)
    folder.finish(form.name, default_requirements(form), {})


class Folder:
    """A model folder that is being written.

    Attributes:
        path: the folder.
        meta: its MLmodel file, not yet written.
    """

    def __init__(self, path: Path, meta: Model, options: SaveOptions, code: str | None) -> None:
        self.path, self.meta = path, meta
        self._options, self._code = options, code
        self._bundle: Bundle | None = None

    @classmethod
    def begin(cls, path: str | Path, options: SaveOptions) -> Folder:
        """Make the empty folder, with the user's code in it.

        Raises:
            MlflowException: the folder is there and not empty, or the options contradict each other.
        """
        from mlflow.models import Model
        from mlflow.utils.environment import _validate_env_arguments
        from mlflow.utils.model_utils import (
            _validate_and_copy_code_paths,
            _validate_and_prepare_target_save_path,
        )

        _validate_env_arguments(
            options.get("conda_env"), options.get("pip_requirements"), options.get("extra_pip_requirements")
        )
        folder = Path(path).absolute()
        _validate_and_prepare_target_save_path(str(folder))
        code = _validate_and_copy_code_paths(options.get("code_paths"), str(folder))
        meta = options.get("mlflow_model") or Model()
        if options.get("metadata") is not None:
            meta.metadata = options["metadata"]
        return cls(folder, meta, options, code)

    def put(self, name: str, made: Made) -> Bundle:
        """Write a form into the folder as a bundle."""
        self._bundle = put_form(self.path, name, made)
        return self._bundle

    def finish(self, name: str, requirements: Sequence[str], conf: Mapping[str, Any]) -> None:
        """Write MLmodel and the files of the environment.

        Args:
            name: the flavor whose form answers.
            requirements: what the model needs unless the options say otherwise.
            conf: entries for the flavor's section besides those that all have.
        """
        from mlflow import pyfunc
        from mlflow.utils.environment import _CONDA_ENV_FILE_NAME, _PYTHON_ENV_FILE_NAME
        from mlflow.utils.file_utils import get_total_file_size

        assert self._bundle is not None
        pyfunc.add_to_model(
            self.meta,
            loader_module=f"mlflow_deploy.flavors.{name}",
            data=f"{FORMS}/{name}",
            conda_env=_CONDA_ENV_FILE_NAME,
            python_env=_PYTHON_ENV_FILE_NAME,
            code=self._code,
            # MLflow passes on the keys that stand here, and no others.
            model_config=dict(MODEL_CONFIG),
        )
        add_section(self.meta, name, self._bundle, code=self._code, **conf)
        self.meta.model_size_bytes = get_total_file_size(str(self.path))
        self.meta.save(str(self.path / "MLmodel"))
        _write_environment(self.path, requirements, self._options)


def put_form(folder: Path, name: str, made: Made) -> Bundle:
    """Write a form into a model folder, as the bundle `forms/<name>`."""
    place = folder / FORMS / name
    place.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as store:
        bundle = write_bundle(
            Path(store),
            model=made.source,
            servable=made.servable,
            content=made.content,
            documents=made.documents,
            notes=made.notes,
        )
        publish_folder(bundle.path, place)
    # Bundles are private to their owner; a model folder is read by whoever serves it.
    place.chmod(0o755)
    return read_bundle(place, verify=False)


def add_section(meta: Model, name: str, bundle: Bundle, **conf: Any) -> None:
    """Name a form in MLmodel, where the UI, `conversion.existing` and the flavor's `load_model` find it."""
    import mlflow_deploy

    servable = bundle.manifest.servable
    meta.add_flavor(
        flavor_name(name),
        data=f"{FORMS}/{name}",
        form=servable.kind,
        precision=servable.precision,
        digest=bundle.digest,
        mlflow_deploy_version=mlflow_deploy.__version__,
        **conf,
    )


def _write_environment(path: Path, requirements: Sequence[str], options: SaveOptions) -> None:
    from mlflow.utils.environment import (
        _CONDA_ENV_FILE_NAME,
        _CONSTRAINTS_FILE_NAME,
        _PYTHON_ENV_FILE_NAME,
        _REQUIREMENTS_FILE_NAME,
        _process_conda_env,
        _process_pip_requirements,
        _PythonEnv,
    )

    given = options.get("pip_requirements")
    if options.get("conda_env") is not None:
        conda, lines, constraints = _process_conda_env(options["conda_env"])
    else:
        conda, lines, constraints = _process_pip_requirements(
            list(requirements) if given is None else None, given, options.get("extra_pip_requirements")
        )
    (path / _CONDA_ENV_FILE_NAME).write_text(
        yaml.safe_dump(conda, default_flow_style=False), encoding="utf-8"
    )
    if constraints:
        (path / _CONSTRAINTS_FILE_NAME).write_text("\n".join(constraints), encoding="utf-8")
    (path / _REQUIREMENTS_FILE_NAME).write_text("\n".join(lines), encoding="utf-8")
    _PythonEnv.current().to_yaml(str(path / _PYTHON_ENV_FILE_NAME))


def default_requirements(form: Form, *more: str) -> list[str]:
    """This package and the form's runtime, pinned to what is installed here."""
    from mlflow.utils.requirements_utils import _get_pinned_requirement

    return [_get_pinned_requirement(name) for name in ("mlflow-deploy", *form.packages, *more)]


def default_conda_env(form: Form, *more: str) -> dict[str, Any]:
    """The conda environment with the default requirements."""
    from mlflow.utils.environment import _mlflow_conda_env

    env: dict[str, Any] = _mlflow_conda_env(additional_pip_deps=default_requirements(form, *more))
    return env


def log(module: Any, model: Any, options: LogOptions, **more: Any) -> ModelInfo:
    """Log a model with a flavor module; see the flavors' `log_model`."""
    from mlflow.models import Model

    values: dict[str, Any] = {"artifact_path": None, "flavor": module, "model": model, **options, **more}
    info: ModelInfo = Model.log(**values)
    return info


# --- loading -----------------------------------------------------------------------------------------------


def load_form(model_uri: str | Path, name: str, dst_path: str | None = None) -> Bundle:
    """The form of a flavor in a model, verified.

    Args:
        model_uri: a URI or path, as MLflow's own `load_model` takes it.
        dst_path: an existing folder to download to.

    Raises:
        ModelCorrupt: the model does not have this flavor, or its files were changed.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.artifact_utils import _download_artifact_from_uri
    from mlflow.utils.model_utils import _add_code_from_conf_to_system_path, _get_flavor_configuration

    folder = Path(_download_artifact_from_uri(artifact_uri=str(model_uri), output_path=dst_path))
    try:
        conf = _get_flavor_configuration(model_path=str(folder), flavor_name=flavor_name(name))
    except MlflowException as error:
        raise ModelCorrupt(str(model_uri), f"it does not have the flavor {flavor_name(name)}") from error
    _add_code_from_conf_to_system_path(str(folder), conf)
    try:
        return read_bundle(folder / str(conf["data"]))
    except DeployError as error:
        raise ModelCorrupt(str(model_uri), error.text) from error
