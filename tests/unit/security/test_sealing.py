"""Sealed files: what was sealed comes back, and nothing that was changed does."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from mlflow_deploy.errors import DeployError
from mlflow_deploy.security import sealing
from mlflow_deploy.security.errors import NotSealed, SealError, SealTampered, SealTruncated, WrongKey
from mlflow_deploy.security.keys import Key, new_pair
from mlflow_deploy.security.seal_format import MAGIC, Header, SealedFile, nonce, read_seal
from mlflow_deploy.security.sealing import open_sealed, rewrap, seal

CHUNK = 64


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Key:
    folder = tmp_path_factory.mktemp("keys")
    return new_pair(folder / "private.pem", folder / "public.pem")


@pytest.fixture
def secret() -> Key:
    return Key(secret=os.urandom(32))


def sealed_of(
    folder: Path, key: Key, sizes: dict[str, int], chunk: int = CHUNK
) -> tuple[Path, dict[str, bytes]]:
    contents = {name: os.urandom(size) for name, size in sizes.items()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    path = folder / "model.sealed"
    seal({name: folder / name for name in sizes}, path, [key], chunk_bytes=chunk)
    return path, contents


@pytest.mark.parametrize(
    "sizes",
    [
        {"a": 0},
        {"a": CHUNK},
        {"a": 5 * CHUNK + 1},
        {"model.onnx": 30, "empty": 0, "sub/model.data": 10 * CHUNK - 30},
        {"a": 3, "b": 1, "c": 200, "d": 64},
    ],
)
def test_what_was_sealed_comes_back(tmp_path: Path, secret: Key, sizes: dict[str, int]) -> None:
    path, contents = sealed_of(tmp_path, secret, sizes)
    with open_sealed(path, secret) as opened:
        assert {name: opened.read(name) for name in opened.names} == contents
        for name, content in contents.items():
            assert Path(opened.path(name)).read_bytes() == content
        with opened.as_folder() as folder:
            assert {n: (folder / n).read_bytes() for n in contents} == contents
            assert all((folder / name).is_symlink() for name in contents)
    assert not folder.exists()


def test_opened_files_cannot_be_changed(tmp_path: Path, secret: Key) -> None:
    path, _ = sealed_of(tmp_path, secret, {"a": 100})
    with open_sealed(path, secret) as opened, pytest.raises(PermissionError):
        os.pwrite(opened.descriptors[0], b"x", 0)


def test_same_content_is_never_the_same_file(tmp_path: Path, secret: Key) -> None:
    (tmp_path / "a").write_bytes(b"the same plaintext" * 10)
    for name in ("one", "two"):
        seal({"a": tmp_path / "a"}, tmp_path / name, [secret])
    one, two = ((tmp_path / name).read_bytes() for name in ("one", "two"))
    assert b"plaintext" not in one
    assert one[-200:] != two[-200:]


def test_public_key_seals_and_only_the_private_one_opens(tmp_path: Path, pair: Key, secret: Key) -> None:
    path, contents = sealed_of(tmp_path, Key(public=pair.public), {"a": 1000})
    assert open_sealed(path, pair).read("a") == contents["a"]
    with pytest.raises(DeployError, match="public key, which only seals"):
        open_sealed(path, Key(public=pair.public))
    with pytest.raises(WrongKey, match=f"opens with {pair.id}"):
        open_sealed(path, secret)


def test_key_pretending_to_be_the_right_one_is_refused(tmp_path: Path, secret: Key) -> None:
    path, _ = sealed_of(tmp_path, secret, {"a": 1000})
    other = Key(secret=os.urandom(32))
    other.__dict__["id"] = secret.id
    with pytest.raises(SealTampered, match="wrapped key"):
        open_sealed(path, other)


def test_every_flipped_bit_is_refused(tmp_path: Path, secret: Key) -> None:
    path, _ = sealed_of(tmp_path, secret, {"a": 150})
    whole = path.read_bytes()
    start = read_seal(path).start
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(SealError) as caught:
            open_sealed(path, secret)
        if position >= start:
            assert type(caught.value) is SealTampered, position


def test_every_cut_is_refused(tmp_path: Path, secret: Key) -> None:
    path, _ = sealed_of(tmp_path, secret, {"a": 150})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SealTruncated if length >= len(MAGIC) else NotSealed):
            open_sealed(path, secret)


def test_moved_repeated_and_foreign_chunks_are_refused(tmp_path: Path, secret: Key) -> None:
    path, _ = sealed_of(tmp_path, secret, {"a": 4 * CHUNK})
    whole, start, size = path.read_bytes(), read_seal(path).start, CHUNK + 16
    chunks = [whole[at : at + size] for at in range(start, len(whole), size)]
    assert len(chunks) == 4
    other, _ = sealed_of(tmp_path, secret, {"a": 4 * CHUNK})
    foreign = other.read_bytes()[read_seal(other).start :][:size]
    for changed in (
        [chunks[1], chunks[0], chunks[2], chunks[3]],
        [chunks[0], chunks[0], chunks[2], chunks[3]],
        [chunks[0], chunks[1], chunks[3], chunks[2]],
        [foreign, chunks[1], chunks[2], chunks[3]],
    ):
        path.write_bytes(whole[:start] + b"".join(changed))
        with pytest.raises(SealTampered, match="chunk"):
            open_sealed(path, secret)
    path.write_bytes(whole + chunks[3])
    with pytest.raises(SealTampered, match="follows its last chunk"):
        open_sealed(path, secret)


def test_cut_at_a_chunk_with_a_header_to_match_is_refused(tmp_path: Path, secret: Key) -> None:
    path, _ = sealed_of(tmp_path, secret, {"a": 4 * CHUNK})
    whole, found = path.read_bytes(), read_seal(path)
    header = found.encoded.replace(b'"bytes":256', b'"bytes":192')
    assert header != found.encoded
    path.write_bytes(whole.replace(found.encoded, header)[: -(CHUNK + 16)])
    with pytest.raises(SealTampered, match="header"):
        open_sealed(path, secret)


def test_last_chunk_is_marked_so_that_a_prefix_is_no_whole(tmp_path: Path, secret: Key) -> None:
    """The second line of defence: even with the commitment recomputed the shorter stream fails."""
    path, _ = sealed_of(tmp_path, secret, {"a": 4 * CHUNK})
    found = read_seal(path)
    three = Header(CHUNK, found.header.nonce_prefix, (SealedFile("a", 3 * CHUNK),))
    assert nonce(found.header, 2) != nonce(three, 2)
    assert nonce(found.header, 1) == nonce(three, 1)


def test_name_that_leads_outside_is_refused(
    tmp_path: Path, secret: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for name in ("../a", "/a", "a/../b", "", "./a", "a//b"):
        with pytest.raises(ValueError, match="cannot be the name"):
            seal({name: tmp_path / "a"}, tmp_path / "out", [secret])
    # Whoever has the public key can seal with a program of their own.
    monkeypatch.setattr(sealing, "checked_name", lambda name: name)
    seal({"../a": tmp_path / "a"}, tmp_path / "out", [secret])
    monkeypatch.undo()
    with pytest.raises(SealTampered, match="header"):
        open_sealed(tmp_path / "out", secret)


def test_failed_sealing_leaves_nothing(tmp_path: Path, secret: Key) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(OSError, match="No such file"):
        seal({"a": tmp_path / "a", "b": tmp_path / "missing"}, tmp_path / "out", [secret])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_rotation_changes_who_opens_and_not_the_content(tmp_path: Path, pair: Key, secret: Key) -> None:
    path, contents = sealed_of(tmp_path, secret, {"a": 10 * CHUNK})
    before = path.read_bytes()[read_seal(path).start :]
    rewrap(path, secret, [Key(public=pair.public)])
    assert path.read_bytes()[read_seal(path).start :] == before
    assert open_sealed(path, pair).read("a") == contents["a"]
    with pytest.raises(WrongKey):
        open_sealed(path, secret)
    with pytest.raises(WrongKey):
        rewrap(path, secret, [secret])
    both = [Key(public=pair.public), secret]
    rewrap(path, pair, both)
    assert read_seal(path).keys == [pair.id, secret.id]
    for key in (pair, secret):
        assert open_sealed(path, key).read("a") == contents["a"]


def test_header_of_a_later_version_says_so(
    tmp_path: Path, secret: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def later(**fields: object) -> Header:
        return Header(**fields, version=2)  # type: ignore[arg-type]

    monkeypatch.setattr(sealing, "Header", later)
    seal({"a": tmp_path / "a"}, tmp_path / "out", [secret])
    monkeypatch.undo()
    with pytest.raises(NotSealed, match="version 2"):
        open_sealed(tmp_path / "out", secret)


def test_absurd_lengths_are_refused_before_anything_is_read(tmp_path: Path, secret: Key) -> None:
    path = tmp_path / "huge"
    path.write_bytes(MAGIC + struct.pack(">I", 0xFFFFFFFF) + b"x" * 100)
    with pytest.raises(SealTampered, match="length of its header"):
        open_sealed(path, secret)
