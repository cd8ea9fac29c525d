"""Sealed models: every form opens in memory only, with the right key only, and keys are changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from mlflow.models import get_model_info
from onnx import TensorProto, helper, numpy_helper

from mlflow_deploy.cli.seal import keys as keys_command
from mlflow_deploy.cli.seal import seal as seal_command
from mlflow_deploy.cli.seal import unseal as unseal_command
from mlflow_deploy.errors import ConfigError, ModelCorrupt
from mlflow_deploy.flavors import onnx as onnx_flavor
from mlflow_deploy.flavors import sealed
from mlflow_deploy.security.errors import KeyUnavailable, SealTampered, WrongKey
from mlflow_deploy.security.keys import KEY_VARIABLE, new_pair, new_secret
from mlflow_deploy.security.seal_format import read_seal

ROWS = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
MARKER = b"\x5a\xa5plaintext of the weights\x5a\xa5"
MEGABYTES = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys `team` (a pair) and `ops` (a secret), `model.onnx` with weights beside it, and it sealed."""
    folder = tmp_path_factory.mktemp("sealed")
    new_pair(folder / "team.pem", folder / "team.pub.pem")
    new_secret(folder / "ops.key")
    size = MEGABYTES * (1 << 20) // 16
    weights = np.random.default_rng(0).normal(size=(4, size)).astype(np.float32)
    raw = bytearray(weights.tobytes())
    raw[1000 : 1000 + len(MARKER)] = MARKER
    weights = np.frombuffer(bytes(raw), np.float32).reshape(4, size)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"]),
            helper.make_node("Slice", ["z", "from", "to", "axis"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        initializer=[
            numpy_helper.from_array(weights, "w"),
            *(numpy_helper.from_array(np.array([number]), name) for name, number in _SLICE.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.data")
    np.save(folder / "expected.npy", ROWS @ weights[:, :3])
    sealed.save_model(
        folder / "model.onnx", folder / "sealed", keys=f"file:{folder}/team.pub.pem", input_example=ROWS
    )
    return folder


_SLICE = {"from": 0, "to": 3, "axis": 1}


@pytest.fixture
def expected(folder: Path) -> Any:
    return np.load(folder / "expected.npy")


def load(model: Path, key: str) -> Any:
    return mlflow.pyfunc.load_model(str(model), model_config={"seal_key": key})


def test_opens_with_external_data_and_the_right_key_only(folder: Path, expected: Any) -> None:
    answer = load(folder / "sealed", f"file:{folder}/team.pem").predict(ROWS)
    np.testing.assert_allclose(answer, expected, rtol=1e-6)
    session = sealed.load_model(folder / "sealed", key=f"file:{folder}/team.pem")
    np.testing.assert_allclose(session.run(None, {"x": ROWS})[0], expected, rtol=1e-6)
    with pytest.raises(WrongKey):
        load(folder / "sealed", f"file:{folder}/ops.key")
    with pytest.raises(KeyUnavailable, match="only seals"):
        load(folder / "sealed", f"file:{folder}/team.pub.pem")


def test_nothing_of_the_model_lies_in_the_folder(folder: Path) -> None:
    assert MARKER in (folder / "model.data").read_bytes()
    for path in (folder / "sealed").rglob("*"):
        assert not path.is_file() or MARKER not in path.read_bytes()
    section = get_model_info(str(folder / "sealed")).flavors["mlflow_deploy.sealed"]
    assert section["form"] == "onnx"
    assert section["keys"] == read_seal(folder / "sealed/forms/sealed/servable/model.sealed").keys


_CHILD = """
import sys, mlflow, numpy as np
from pathlib import Path

def written():
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["write_bytes"])

rows = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
mlflow.pyfunc.load_model(sys.argv[2]).predict(rows)  # everything is imported and compiled
before = written()
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(rows)
count, before = written() - before, written()
Path("control").write_bytes(bytes(2 << 20))
print(count, written() - before, answer.tolist(), flush=True)
sys.stdin.readline()
"""


def test_plaintext_is_never_on_a_disk(folder: Path, expected: Any, tmp_path: Path) -> None:
    """A process opens and serves a model while its temporary folder, open files and disk writes are watched."""
    small = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    sealed.save_model(small, tmp_path / "small", keys=f"file:{folder}/team.pub.pem", input_example=ROWS)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder / "sealed"), str(tmp_path / "small")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=scratch,
        env={
            **os.environ,
            "TMPDIR": str(scratch),
            "HOME": str(scratch),
            KEY_VARIABLE: f"file:{folder}/team.pem",
        },
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        count, control, answer = child.stdout.readline().split(" ", 2)
        np.testing.assert_allclose(json.loads(answer), expected, rtol=1e-6)
        # The kernel counts here, also what native libraries write and delete again.
        assert int(control) >= (2 << 20)
        assert int(count) < (1 << 20), f"{count} bytes were written to disks"
        open_files = Path(f"/proc/{child.pid}/fd")
        for link in open_files.iterdir():
            if link.exists() and link.is_file():
                assert MARKER not in link.read_bytes(), f"{link.readlink()} holds plaintext"
        for path in scratch.rglob("*"):
            assert path.is_symlink() or not path.is_file() or MARKER not in path.read_bytes(), path
        assert not list(scratch.glob("mlflow-deploy-open-*"))
    finally:
        child.communicate("\n", timeout=60)


def test_tampered_inside_a_bundle_with_digests_to_match_is_refused(folder: Path, tmp_path: Path) -> None:
    """Whoever can write the folder can write its digests, but not the seal."""
    copy = Path(shutil.copytree(folder / "sealed", tmp_path / "copy"))
    file = copy / "forms/sealed/servable/model.sealed"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelCorrupt, match="was changed"):
        sealed.load_model(copy, key=f"file:{folder}/team.pem")
    from mlflow_deploy.files import sha256_file

    manifest = json.loads((copy / "forms/sealed/bundle.json").read_text())
    manifest["files"]["servable/model.sealed"]["sha256"] = sha256_file(file)
    (copy / "forms/sealed/bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(SealTampered):
        sealed.load_model(copy, key=f"file:{folder}/team.pem")


@pytest.mark.parametrize("reencrypt", [False, True])
def test_keys_are_rotated(folder: Path, expected: Any, tmp_path: Path, reencrypt: bool) -> None:
    team, ops = f"file:{folder}/team.pem", f"file:{folder}/ops.key"
    sealed.rotate(folder / "sealed", tmp_path / "rotated", key=team, keys=ops, reencrypt=reencrypt)
    np.testing.assert_allclose(load(tmp_path / "rotated", ops).predict(ROWS), expected, rtol=1e-6)
    with pytest.raises(WrongKey):
        load(tmp_path / "rotated", team)
    before = read_seal(folder / "sealed/forms/sealed/servable/model.sealed")
    after = read_seal(tmp_path / "rotated/forms/sealed/servable/model.sealed")
    assert (before.encoded == after.encoded) is not reencrypt
    assert get_model_info(str(tmp_path / "rotated")).flavors["mlflow_deploy.sealed"]["keys"] == after.keys


def test_unsealed_is_the_flavor_inside(folder: Path, expected: Any, tmp_path: Path) -> None:
    sealed.unseal(folder / "sealed", tmp_path / "plain", key=f"file:{folder}/team.pem")
    assert (tmp_path / "plain/forms/onnx/servable/model.data").read_bytes() == (
        folder / "model.data"
    ).read_bytes()
    np.testing.assert_allclose(
        mlflow.pyfunc.load_model(str(tmp_path / "plain")).predict(ROWS), expected, rtol=1e-6
    )
    assert onnx_flavor.load_model(tmp_path / "plain") is not None


def test_sealing_twice_without_key_or_as_pyfunc_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already sealed"):
        sealed.save_model(folder / "sealed", tmp_path / "a", keys=f"file:{folder}/team.pub.pem")
    with pytest.raises(ConfigError, match="needs a key"):
        sealed.save_model(folder / "model.onnx", tmp_path / "b", keys=[])
    with pytest.raises(ConfigError, match=r"sealed as pyfunc: .*Seal one of its other forms"):
        sealed.save_model(folder / "model.onnx", tmp_path / "b", form="pyfunc", keys=f"file:{folder}/ops.key")
    assert not (tmp_path / "b").exists()


def run(command: Any, *arguments: object) -> str:
    done = CliRunner().invoke(command, [str(item) for item in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_command_line(folder: Path, expected: Any, tmp_path: Path) -> None:
    made = json.loads(run(keys_command, "new", tmp_path / "a", "--json"))
    secret = json.loads(run(keys_command, "new", tmp_path / "b", "--secret", "--json"))
    assert made["id"] in run(keys_command, "show", f"file:{made['private']}")
    onnx_flavor.save_model(folder / "model.onnx", tmp_path / "model", input_example=ROWS)
    out = json.loads(
        run(
            seal_command,
            tmp_path / "model",
            "--key",
            f"file:{made['public']}",
            "-o",
            tmp_path / "s",
            "--json",
        )
    )
    assert out["keys"] == [made["id"]]
    assert out["form"] == "onnx"
    opening = ["--key", f"file:{made['private']}"]
    run(
        keys_command,
        "rotate",
        tmp_path / "s",
        *opening,
        "--new-key",
        f"file:{secret['private']}",
        "-o",
        tmp_path / "r",
    )
    assert run(keys_command, "show", tmp_path / "r").strip() == secret["id"]
    run(unseal_command, tmp_path / "r", "--key", f"file:{secret['private']}", "-o", tmp_path / "p")
    np.testing.assert_allclose(
        mlflow.pyfunc.load_model(str(tmp_path / "p")).predict(ROWS), expected, rtol=1e-6
    )
    again = CliRunner().invoke(unseal_command, [str(tmp_path / "r"), "-o", str(tmp_path / "p")])
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchscript", "torch_export", "savedmodel", "tflite"])
def test_every_form_opens_from_memory(form: str, folder: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
    model: Any
    if form.startswith("torch"):
        import torch

        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        with torch.no_grad():
            native = model(torch.from_numpy(rows)).numpy()
    else:
        import keras

        model = keras.Sequential(
            [keras.layers.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
        )
        native = np.asarray(model(rows))
    sealed.save_model(
        model, tmp_path / form, form=form, keys=f"file:{folder}/team.pub.pem", input_example=rows[:3]
    )
    names = {path.name for path in (tmp_path / form / "forms/sealed/servable").rglob("*")}
    assert names == {"model.sealed"}
    answer = load(tmp_path / form, f"file:{folder}/team.pem").predict(rows)
    np.testing.assert_allclose(answer, native, atol=1e-4, rtol=1e-4)
    assert sealed.load_model(tmp_path / form, key=f"file:{folder}/team.pem") is not None
