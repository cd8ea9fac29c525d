"""Runs in the build stage of a runtime: makes the virtual environment from locked wheels, trims, compiles.

It is copied into the build context and uses the standard library only. Arguments: the Python version that the
lock is for, and `trim` or `keep`.
"""

from __future__ import annotations

import compileall
import py_compile
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path("/opt/mlflow-deploy")
BUILD = Path("/build")
UNSUITABLE = "mlflow-deploy: unsuitable base image: "

TESTED = ("networkx", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "sympy")
"""Packages whose test files are left out; what their tests folders hold besides is imported by others."""
UNUSED = (
    "onnxruntime/transformers", "onnxruntime/tools", "onnxruntime/quantization", "onnxruntime/datasets",
    "onnxruntime/backend", "pyarrow/include", "pyarrow/src", "torch/test",
)  # fmt: skip
"""Developer tools that no server imports."""
TORCH_NEEDS = "torch_shm_manager"
"""The one program of torch that torch itself starts; the others are its tests."""


def main(python: str, trim: str) -> None:
    """Make the virtual environment."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != python:
        sys.exit(f"{UNSUITABLE}its Python is {here}, and the packages are locked for {python}")
    venv = ROOT / "venv"
    try:
        run(sys.executable, "-m", "venv", str(BUILD / "pip"))
    except subprocess.CalledProcessError:
        sys.exit(f"{UNSUITABLE}its Python cannot make virtual environments with pip (Debian: python3-venv)")
    run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    pip = [str(BUILD / "pip/bin/python"), "-m", "pip", "--python", str(venv / "bin/python"), "install"]
    offline = ["--no-index", "--find-links", str(BUILD / "wheels"), "--require-hashes", "--no-deps"]
    quiet = ["--quiet", "--no-color", "--no-cache-dir", "--no-compile", "--disable-pip-version-check"]
    try:
        run(*pip, *quiet, *offline, "--root-user-action=ignore", "-r", str(BUILD / "requirements.txt"))
    except subprocess.CalledProcessError:
        sys.exit("mlflow-deploy: the locked packages could not be installed")
    packages = next((venv / "lib").glob("python*/site-packages"))
    (packages / "mlflow-deploy-app.pth").write_text(f"{ROOT}/app\n")
    if trim == "trim":
        trim_packages(packages)
    # A read-only root cannot keep what Python compiles, and compiling at each start costs seconds.
    compileall.compile_dir(
        packages,
        quiet=2,
        workers=0,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    shutil.copy(BUILD / "requirements.lock", ROOT / "requirements.lock")
    open_up(ROOT)


def run(*command: str) -> None:
    """Run a command; raises CalledProcessError when it fails."""
    subprocess.run(command, check=True)


def trim_packages(packages: Path) -> None:
    """Remove tests and developer tools."""
    for name in UNUSED:
        shutil.rmtree(packages / name, ignore_errors=True)
    for name in TESTED:
        for folder in (packages / name).rglob("tests"):
            for path in folder.rglob("*"):
                if path.is_file() and (path.name.startswith("test_") or not path.name.endswith(".py")):
                    path.unlink()
    for path in packages.glob("torch/bin/*"):
        if path.is_file() and path.name != TORCH_NEEDS:
            path.unlink()
    for path in packages.rglob("*"):
        if (
            path.is_file()
            and re.search(r"\.(pyi|pxd|pyx|h|hpp|lib|a)$", path.name)
            and "torch" not in path.parts
        ):
            path.unlink()


def open_up(root: Path) -> None:
    """Let every user read everything, and group 0 write nothing more than the owner."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            extra = 0o055 if path.is_dir() or mode & 0o100 else 0o044
            path.chmod((mode | extra) & 0o7755)


if __name__ == "__main__":
    main(*sys.argv[1:])
