"""Every room imports only rooms on floors below it, and the doors stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mlflow_deploy"

FLOORS = {
    "errors": 1, "files": 1, "settings": 1, "progress": 1, "processes": 1, "reachable": 1, "config": 1,
    "config_monitor": 1, "security": 1,
    "bundle": 2, "pmml_evaluator": 2,
    "serving": 3, "conversion": 3, "gateway": 3,
    "flavors": 4, "images": 4,
    "targets": 5,
    "rollout": 6, "monitoring": 6,
    "lifecycle": 7,
    "plugin": 8, "scoring": 8, "cli": 8, "ui": 8, "testing": 8, "demo": 8,
}  # fmt: skip
SAME_FLOOR_ALLOWED = {(1, 1), (8, 8)}
"""Floor 1 is a small kernel and floor 8 the doors; elsewhere rooms of one floor do not know each other."""
FORBIDDEN = {("targets", "conversion"), ("targets", "flavors")}


def _imports(path: Path) -> set[tuple[str, str]]:
    """(room, dotted module) of every import of the package in a file, wherever it stands in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "mlflow_deploy" and len(parts) > 1:
                found.add((parts[1], name))
    return found


def _files() -> list[tuple[str, Path]]:
    rooms = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] not in ("__init__.py", "_projects"):
            rooms.append((relative.parts[0].removesuffix(".py"), path))
    return rooms


def test_every_room_has_a_floor() -> None:
    assert {room for room, _ in _files()} <= FLOORS.keys()


@pytest.mark.parametrize(("room", "path"), _files(), ids=lambda value: getattr(value, "name", value))
def test_rooms_import_only_rooms_below_them(room: str, path: Path) -> None:
    for other, name in _imports(path):
        if other in (room, "__version__"):
            continue
        below = FLOORS[other] < FLOORS[room]
        neighbours = (FLOORS[room], FLOORS[other]) in SAME_FLOOR_ALLOWED
        assert below or neighbours, f"{path.name} of {room} imports {name}"
        assert (room, other) not in FORBIDDEN, f"{path.name} of {room} imports {name}"
        if room in ("rollout", "monitoring") and other == "targets":
            assert name.startswith("mlflow_deploy.targets.base"), f"{path.name} imports the concrete {name}"


HEAVY = [
    "torch", "tensorflow", "onnx", "onnxruntime", "sklearn", "skl2onnx", "pandas", "docker", "evidently",
    "rich",
]  # fmt: skip


@pytest.mark.parametrize(
    ("door", "before"), [("mlflow_deploy", ""), ("mlflow_deploy.plugin", "import mlflow.deployments")]
)
def test_doors_load_nothing_heavy(door: str, before: str) -> None:
    # `import mlflow.deployments` loads pandas itself; the plugin must not add to what MLflow has loaded.
    code = (
        f"import sys\n{before}\nbefore = set(sys.modules)\nimport {door}\n"
        f"print([name for name in {HEAVY!r} if name in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
