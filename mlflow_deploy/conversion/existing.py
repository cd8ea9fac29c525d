"""Forms that a model folder already holds: found, verified, and used without converting again."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlflow_deploy.bundle import EXAMPLE, PARITY, SERVABLE, SIGNATURE, Bundle, read_bundle
from mlflow_deploy.conversion.report import ParityReport, Tolerance
from mlflow_deploy.errors import BundleCorrupt, ModelCorrupt
from mlflow_deploy.files import sha256_file

if TYPE_CHECKING:
    from mlflow.models import Model

    from mlflow_deploy.conversion.choose import Conversion

FORMS = "forms"
"""Folder in a model folder that holds its forms, each a bundle."""

_PREFIX = "mlflow_deploy."
_LOADERS = "mlflow_deploy.flavors."
_BESIDES = (
    "MLmodel", "conda.yaml", "constraints.txt", "environment_variables.txt", "input_example.json",
    "python_env.yaml", "registered_model_meta", "requirements.txt", "serving_input_example.json",
)  # fmt: skip


def flavor_name(name: str) -> str:
    """Name of a form's section in MLmodel."""
    return _PREFIX + name


def native_digest(folder: Path) -> str:
    """`sha256-<hex>` over the files that the native model of a folder consists of.

    What MLflow writes beside them, which changes when a model is logged or registered, does not count, nor do
    the forms.
    """
    entries: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        besides = name in _BESIDES or name.startswith(f"{FORMS}/") or "__pycache__" in path.parts
        if path.is_file() and not besides:
            entries[name] = sha256_file(path)
    return f"sha256-{sha256(msgspec.json.encode(entries, order='sorted')).hexdigest()}"


def existing_form(
    folder: Path, meta: Model, wanted: str | None, tolerance: Tolerance | None = None
) -> tuple[Conversion | None, tuple[str, ...]]:
    """The form in a model folder that may be served as it is.

    A form beside a native model is used when its digests are right, it was made from this very model, and its
    parity report says that it passed, with the tolerance asked for. Where one of our flavors is the model
    itself there is nothing to compare it with.

    Args:
        folder: the model folder.
        meta: its MLmodel file.
        wanted: a form in the words of `-C format=`; None takes the first.
        tolerance: the tolerance that the user gave.

    Returns:
        The conversion or None, and for each form that is there but not used the reason.

    Raises:
        ModelCorrupt: the model itself is one of our flavors and its files were changed.
    """
    loader = str(meta.flavors["python_function"].get("loader_module", ""))
    own = loader.removeprefix(_LOADERS) if loader.startswith(_LOADERS) else ""
    reasons: list[str] = []
    if wanted == "pyfunc":
        return None, ()
    for section, conf in meta.flavors.items():
        name = section.removeprefix(_PREFIX)
        if name == section or wanted not in (None, conf.get("form")):
            continue
        try:
            bundle = read_bundle(folder / str(conf.get("data")))
            why = (
                "" if bundle.digest == conf.get("digest") else "its digest is not the one that MLmodel names"
            )
        except BundleCorrupt as error:
            why = error.text
        if why and name == own:
            raise ModelCorrupt(str(folder), why)
        if not why and name != own:
            why = _unproven(bundle, folder, tolerance)
        if not why:
            return _conversion(bundle), tuple(reasons)
        reasons.append(f"the {name} form stored in the model is not used: {why}")
    return None, tuple(reasons)


def _unproven(bundle: Bundle, folder: Path, tolerance: Tolerance | None) -> str:
    """Why a form cannot stand for the native model beside it, or the empty string."""
    if bundle.manifest.model.digest != native_digest(folder):
        return "it was made from another model"
    document = bundle.document(PARITY)
    if document is None:
        return "it has no parity report"
    report = ParityReport.from_dict(document)
    if not report.passed:
        return f"it {report.finding}"
    if tolerance not in (None, report.tolerance):
        return "it was proven with another tolerance"
    return ""


def _conversion(bundle: Bundle) -> Conversion:
    from mlflow_deploy.conversion.choose import Conversion

    parity: Mapping[str, Any] | None = bundle.document(PARITY)
    servable = bundle.manifest.servable
    note = "the model is encrypted; the server needs its key (serving.seal_key)"
    return Conversion(
        content=bundle.path / SERVABLE,
        servable=servable,
        parity=ParityReport.from_dict(parity) if parity else None,
        example=bundle.document(EXAMPLE),
        signature=bundle.document(SIGNATURE),
        notes=(*bundle.manifest.notes, *((note,) if servable.sealed else ())),
    )
