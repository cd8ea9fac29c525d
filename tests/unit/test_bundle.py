"""Bundles are content-addressed, and any change to them is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_deploy.bundle import MANIFEST, folder_digest, read_bundle
from mlflow_deploy.errors import BundleCorrupt, StateWriteFailed
from tests.bundles import adder_bundle


def test_same_content_same_digest_other_content_other_digest(tmp_path: Path) -> None:
    first = adder_bundle(tmp_path / "store1", tmp_path / "a", 1.0)
    again = adder_bundle(tmp_path / "store2", tmp_path / "b", 1.0)
    other = adder_bundle(tmp_path / "store1", tmp_path / "c", 2.0)
    assert first.digest == again.digest == first.path.name
    assert other.digest != first.digest
    assert sorted(path.name for path in (tmp_path / "store1").iterdir()) == sorted(
        [first.digest, other.digest]
    )


def test_read_gives_what_was_written(tmp_path: Path) -> None:
    written = adder_bundle(tmp_path / "store", tmp_path, 1.0)
    bundle = read_bundle(written.path)
    assert bundle == written
    assert bundle.document("example.json")["predictions"] == [2.0]
    assert bundle.document("parity.json") is None
    assert bundle.servable_path.is_file()
    assert bundle.bytes > 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: (path / "servable" / "model.onnx").write_bytes(b"x"),
            "servable/model.onnx was changed",
        ),
        (lambda path: (path / "servable" / "model.onnx").unlink(), "servable/model.onnx is missing"),
        (lambda path: (path / "servable" / "extra").write_text(""), "servable/extra is not in the manifest"),
        (lambda path: (path / MANIFEST).unlink(), "cannot be read"),
        (lambda path: (path / MANIFEST).write_text("{"), "cannot be read"),
        (lambda path: (path / MANIFEST).write_text((path / MANIFEST).read_text() + " "), "was changed"),
        (lambda path: (path / "servable" / "link").symlink_to("/etc/passwd"), "symbolic link"),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, damage: object, message: str) -> None:
    bundle = adder_bundle(tmp_path / "store", tmp_path, 1.0)
    damage(bundle.path)  # type: ignore[operator]
    with pytest.raises(BundleCorrupt, match=message):
        read_bundle(bundle.path)


def test_store_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(StateWriteFailed, match="store"):
        adder_bundle(tmp_path / "store", tmp_path / "work", 1.0)


def test_folder_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = folder_digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert folder_digest(tmp_path / "a") != first
