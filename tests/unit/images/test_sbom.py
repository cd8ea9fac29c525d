"""The bill of materials is valid CycloneDX 1.6, complete and the same each time."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import sbom

DPKG = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 More: text

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_it_is_valid_and_complete(graph: Bundle, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(DPKG)
    document = sbom.describe(graph.path, dpkg=status)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    assert document == sbom.describe(graph.path, dpkg=status)
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert f"sha256-{model['hashes'][0]['content']}" == graph.digest
    versions = {each["name"]: each.get("version") for each in document["components"]}
    assert versions["numpy"] == importlib.metadata.version("numpy")
    assert versions["libc6"] == "2.36-9+deb12u10"
    assert "gone" not in versions
    files = {each["name"]: each["hashes"] for each in document["components"] if each["type"] == "file"}
    entry = graph.manifest.files["servable/model.onnx"]
    assert files["servable/model.onnx"] == [{"alg": "SHA-256", "content": entry.sha256}]
    uses = next(each for each in document["dependencies"] if each["ref"] == "model")["dependsOn"]
    assert any(ref.startswith("pkg:pypi/onnxruntime@") for ref in uses)
    edges = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    onnxruntime = next(ref for ref in edges if ref.startswith("pkg:pypi/onnxruntime@"))
    assert any(ref.startswith("pkg:pypi/numpy@") for ref in edges[onnxruntime])


def test_it_is_written(graph: Bundle, tmp_path: Path) -> None:
    assert sbom.main([str(graph.path), str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["specVersion"] == "1.6"
