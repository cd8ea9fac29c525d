"""Locks are read, kept, and made by the real pip from a local folder; its failures become one line."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from mlflow_deploy.errors import ConfigError
from mlflow_deploy.images import lock as locks
from mlflow_deploy.images import pip
from mlflow_deploy.images.errors import (
    IndexUnreachable,
    NoDiskSpace,
    PipMissing,
    PythonMismatch,
    RequirementsUnresolved,
)
from mlflow_deploy.images.requirements import Wanted
from tests.unit.images.conftest import LOCK, make_spec


def wheel(folder: Path, name: str, version: str, *needs: str) -> Path:
    """Write a small wheel."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        record = base64.urlsafe_b64encode(hashlib.sha256(b"").digest()).decode().rstrip("=")
        archive.writestr(f"{info}/RECORD", f"{name}.py,sha256={record},0\n")
    return path


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, object]:
    """Settings by which pip sees one local folder and nothing else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "Top_Package", "1.0", "below>=1")
    wheel(folder, "below", "1.0")
    wheel(folder, "below", "2.0")
    return {"wheels": folder, "pip_args": "--no-index"}


def test_a_lock_is_made_kept_and_fetched(offline: dict[str, object], tmp_path: Path) -> None:
    spec = make_spec(**offline)
    lines: list[str] = []
    lock = locks.lock_requirements(Wanted(("Top_Package",)), spec, lines.append)
    assert [(name, version) for name, version, _ in lock.packages] == [
        ("below", "2.0"),
        ("top-package", "1.0"),
    ]
    assert any("pip: Processing" in line for line in lines)
    into = tmp_path / "work" / "wheels"
    into.parent.mkdir()
    assert locks.fetch(lock, into, spec, lines.append).splitlines() == lock.text.splitlines()[1:]
    assert len(list(into.iterdir())) == 2

    wheel(tmp_path / "wheels", "below", "3.0")
    assert locks.lock_requirements(Wanted(("Top_Package",)), spec, lines.append) == lock
    newer = locks.lock_requirements(Wanted(("Top_Package",)), spec, lines.append, refresh=True)
    assert newer.version("below") == "3.0"
    assert newer.digest != lock.digest


def test_a_changed_package_is_not_fetched(offline: dict[str, object], tmp_path: Path) -> None:
    spec = make_spec(**offline)
    lock = locks.lock_requirements(Wanted(("below",)), spec, lambda line: None)
    wheel(tmp_path / "wheels", "below", "2.0", "evil; python_version < '3'")
    (tmp_path / "work").mkdir()
    with pytest.raises(RequirementsUnresolved) as caught:
        locks.fetch(lock, tmp_path / "work" / "wheels", spec, lambda line: None)
    assert "HASHES" in caught.value.text or "do not match" in caught.value.text.lower()


def test_what_does_not_resolve_is_named(offline: dict[str, object]) -> None:
    with pytest.raises(RequirementsUnresolved, match=r"below==9") as caught:
        locks.lock_requirements(Wanted(("below==9",)), make_spec(**offline), lambda line: None)
    assert "\n" not in caught.value.text
    with pytest.raises(RequirementsUnresolved, match=r"(?i)top.package 1\.0 depends on below>=1"):
        locks.lock_requirements(
            Wanted(("Top_Package",), constraints=("below<1",)),
            make_spec(**offline),
            lambda line: None,
        )


def test_another_python_is_refused() -> None:
    other = "3.11" if sys.version_info[:2] != (3, 11) else "3.12"
    with pytest.raises(PythonMismatch):
        locks.lock_requirements(Wanted(("x",)), make_spec(python=other), lambda line: None)


def test_a_lock_of_the_users_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(LOCK.replace(" --hash", " \\\n    --hash"))
    assert locks.lock_requirements(Wanted(("other",)), make_spec(lock=path), lambda line: None).text == LOCK


@pytest.mark.parametrize(
    "text", ["numpy>=1\n", "numpy==1.0\n", "--index-url x\n", "numpy==1.0 --hash=md5:00\n"]
)
def test_a_lock_without_hashes_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="hash=sha256"):
        locks.read_lock(path)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("/usr/bin/python: No module named pip", PipMissing),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            NoDiskSpace,
        ),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
            "ERROR: Could not find a version that satisfies the requirement x\nERROR: No matching distribution",
            IndexUnreachable,
        ),
        ("ERROR: No matching distribution found for x", RequirementsUnresolved),
    ],
)
def test_pips_words_become_errors(output: str, kind: type[Exception]) -> None:
    assert isinstance(pip._failure(output.splitlines(), "resolving"), kind)


def test_passwords_are_cut_out() -> None:
    assert pip.redacted("at https://user:p%40ss@host/simple now") == "at https://***@host/simple now"


def test_another_processor_takes_its_wheels_only() -> None:
    other = "linux/arm64" if make_spec().machine == "x86_64" else "linux/amd64"
    options = pip._platform_options(make_spec(platform=other), None)
    assert "--only-binary=:all:" in options
    assert any(option.startswith("manylinux_2_17_") for option in options)
    assert pip._platform_options(make_spec(), None) == []
