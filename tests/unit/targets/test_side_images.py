"""The images of monitor and gateway hold every module of ours that their modules import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mlflow_deploy
from mlflow_deploy.targets import docker_gateway_image, docker_monitor_image

PACKAGE = Path(mlflow_deploy.__file__).parent
IMAGES = {
    image.__name__.rpartition(".")[2]: sorted(
        path.relative_to(PACKAGE).as_posix() for path in image._own_files()
    )
    for image in (docker_gateway_image, docker_monitor_image)
}


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports when it runs, as files in the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in only_types:
            continue
        module = node.module or ""
        if module.split(".")[0] != "mlflow_deploy":
            continue
        folder = PACKAGE.joinpath(*module.split(".")[1:])
        names = [each.name for each in node.names] if folder.is_dir() else []
        found |= {folder / f"{name}.py" for name in names if (folder / f"{name}.py").exists()}
        found.add(folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py"))
    return {each.relative_to(PACKAGE).as_posix() for each in found}


@pytest.mark.parametrize(("image", "module"), [(image, each) for image in IMAGES for each in IMAGES[image]])
def test_what_a_module_imports_is_in_the_image(image: str, module: str) -> None:
    assert imported(PACKAGE / module) - set(IMAGES[image]) == set()
