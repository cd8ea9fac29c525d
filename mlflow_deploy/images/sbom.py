"""The bill of materials: a CycloneDX 1.6 document of what an image contains, written inside the image.

Run as `python -m mlflow_deploy.images.sbom BUNDLE OUTPUT`. Python packages are found as importlib.metadata sees
them, Debian packages in dpkg's own list, and the model in the bundle's manifest. The document holds no time
and no host name, so that the same content gives the same document.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

_NAMESPACE = uuid.UUID("6f1d3c1e-5d0f-5f0e-9a39-2f1a7f6f9c11")
_DPKG = Path("/var/lib/dpkg/status")

Component = dict[str, Any]


def describe(bundle: Path, *, dpkg: Path = _DPKG) -> dict[str, Any]:
    """The document for the Python environment that runs this and the bundle in a folder."""
    model, files = _model(bundle)
    packages, edges = _packages()
    interpreter = {
        "type": "platform",
        "bom-ref": f"python@{platform.python_version()}",
        "name": platform.python_implementation().lower(),
        "version": platform.python_version(),
    }
    components = [*files, interpreter, *packages, *_debian(dpkg)]
    uses = [interpreter["bom-ref"], *(each["bom-ref"] for each in packages)]
    dependencies = [{"ref": model["bom-ref"], "dependsOn": sorted(uses)}, *edges]
    content = json.dumps([model, components, dependencies], sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}",
        "version": 1,
        "metadata": {"tools": {"components": [_tool()]}, "component": model},
        "components": components,
        "dependencies": dependencies,
    }


def _tool() -> Component:
    import mlflow_deploy

    return {"type": "application", "name": "mlflow-deploy", "version": mlflow_deploy.__version__}


def _model(bundle: Path) -> tuple[Component, list[Component]]:
    """(the model, its files) from the bundle's manifest."""
    encoded = (bundle / "bundle.json").read_bytes()
    manifest = json.loads(encoded)
    source = manifest["model"]
    name = source["name"] or source["uri"].rstrip("/").rpartition("/")[2] or "model"
    known = {
        "uri": source["uri"], "model-id": source["model_id"], "run-id": source["run_id"],
        "model-digest": source["digest"], "flavors": ", ".join(source["flavors"]),
        "mlflow-version": source["mlflow_version"], "format": manifest["servable"]["kind"],
        "precision": manifest["servable"]["precision"],
    }  # fmt: skip
    model: Component = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(encoded).hexdigest()}],
        "properties": [
            {"name": f"mlflow-deploy:{key}", "value": value} for key, value in known.items() if value
        ],
    }
    if source["version"]:
        model["version"] = source["version"]
        model["purl"] = f"pkg:mlflow/{quote(source['name'], safe='')}@{quote(source['version'], safe='')}"
    files = [
        {
            "type": "file",
            "bom-ref": f"file:{path}",
            "name": path,
            "hashes": [{"alg": "SHA-256", "content": entry["sha256"]}],
        }
        for path, entry in sorted(manifest["files"].items())
    ]
    return model, files


def _packages() -> tuple[list[Component], list[dict[str, Any]]]:
    """(installed Python distributions, which of them needs which)."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for each in importlib.metadata.distributions():
        found.setdefault(_canonical(each.metadata["Name"]), each)
    refs = {name: f"pkg:pypi/{name}@{each.version}" for name, each in found.items()}
    components, edges = [], []
    for name, each in sorted(found.items()):
        component: Component = {
            "type": "library",
            "bom-ref": refs[name],
            "name": name,
            "version": each.version,
            "purl": f"pkg:pypi/{name}@{quote(each.version, safe='')}",
        }
        if licenses := _licenses(each):
            component["licenses"] = licenses
        components.append(component)
        needs = {_canonical(re.split(r"[^\w.-]", line.strip())[0]) for line in each.requires or []}
        edges.append({"ref": refs[name], "dependsOn": sorted(refs[need] for need in needs & refs.keys())})
    return components, edges


def _licenses(each: importlib.metadata.Distribution) -> list[dict[str, Any]]:
    metadata = each.metadata
    if "License-Expression" in metadata:
        return [{"expression": metadata["License-Expression"]}]
    text = metadata["License"].strip() if "License" in metadata else ""
    # Some packages have the whole text of the licence here.
    if text and "\n" not in text and len(text) < 80 and text != "UNKNOWN":
        return [{"license": {"name": text}}]
    classifiers = (line for line in metadata.get_all("Classifier") or [] if line.startswith("License ::"))
    return [{"license": {"name": line.rpartition(" :: ")[2]}} for line in classifiers]


def _debian(status: Path) -> list[Component]:
    """Installed Debian packages; none on a base image without dpkg."""
    if not status.is_file():
        return []
    components = []
    for paragraph in status.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
            purl = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={arch}"
            components.append(
                {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
            )
    return components


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> int:
    """Write the document."""
    bundle, output = arguments
    document = describe(Path(bundle))
    Path(output).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
