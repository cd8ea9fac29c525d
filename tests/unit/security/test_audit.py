"""The audit of model files: hostile ones are refused by name, and nothing runs meanwhile."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.utils import all_estimators

from mlflow_deploy.errors import DataError
from mlflow_deploy.security import AuditReport, audit_path
from mlflow_deploy.security.allowed_globals import FLAVORS, allowed_globals
from mlflow_deploy.security.archives import Budget
from mlflow_deploy.security.pickle_globals import Global
from tests.unit.security.hostile import SAMPLES, call, write_all, zipped


def rules(report: AuditReport) -> set[str]:
    return {finding.rule for finding in report.findings}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("flavor", [None, "sklearn", "pytorch"])
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str, flavor: str | None) -> None:
    file, content, expected = SAMPLES[name]
    (tmp_path / file).write_bytes(content)
    report = audit_path(tmp_path, flavor=flavor)
    assert not report.ok
    assert expected in {finding.what for finding in report.findings if finding.rule == "pickle-global"}
    assert json.loads(report.to_json())["findings"][0]["path"].startswith(file)


def test_the_chain_of_archives_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(SAMPLES["nested"][1])
    assert [finding.path for finding in audit_path(tmp_path).findings] == ["model.zip!/a.zip!/m.dat"]


WATCH = """
import sys
from mlflow_deploy.security import audit_path
audit_path(sys.argv[1])
seen = []
def watch(event, arguments):
    if event in ("import", "exec", "os.system", "os.exec", "subprocess.Popen", "pickle.find_class"):
        seen.append((event, str(arguments[0])))
    elif event.startswith(("socket.", "shutil.", "ctypes.", "os.remove", "os.rename", "os.mkdir")):
        seen.append((event, str(arguments)))
    elif event == "open" and arguments[2] & 3:
        seen.append((event, str(arguments)))
sys.addaudithook(watch)
report = audit_path(sys.argv[2])
found = list(seen)
print(len({item.path for item in report.findings}), found)
seen.clear()
exec("import colorsys")
assert {"exec", "import"} <= {event for event, _ in seen}, "the watch sees nothing"
"""


def test_nothing_is_imported_executed_written_or_connected(tmp_path: Path) -> None:
    warm, hostile = tmp_path / "warm", tmp_path / "hostile"
    for folder in (warm, hostile):
        folder.mkdir()
        (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: evil, code: code}}")
        (folder / "requirements.txt").write_text("numpy\n")
    # Python loads the codec of zip archives' names when it needs it.
    (warm / "a.zip").write_bytes(zipped("a", b"a"))
    write_all(hostile)
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(warm), str(hostile)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1) == [str(len(SAMPLES) + 1), "[]\n"]


def test_lists_have_all_estimators_and_nothing_that_runs_things() -> None:
    listed = allowed_globals(FLAVORS)
    wanted = {Global(kind.__module__, kind.__name__) for _, kind in all_estimators()}
    assert wanted <= listed
    for module in (
        "numpy.f2py",
        "sklearn.externals",
        "sklearn.datasets",
        "torch.hub",
        "torch.fx",
        "joblib.memory",
    ):
        assert not [item for item in listed if item.module.startswith(module)]
    for name in ("eval", "exec", "getattr", "open", "__import__", "compile", "type", "map", "apply"):
        assert Global("builtins", name) not in listed
        assert Global("__builtin__", name) not in listed


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("xz", 1)])
def test_joblib_files_with_arrays_pass(tmp_path: Path, compress: Any) -> None:
    model = LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    objects = np.array([None, "x"], dtype=object)
    records = np.array([(1, 2.0, "x")], dtype=[("a", "i8"), ("b", "f4"), ("c", "U3")])
    joblib.dump([model, objects, records, np.ones(9)], tmp_path / "model.joblib", compress=compress)
    assert audit_path(tmp_path).findings == ()


def test_classes_cannot_be_changed(tmp_path: Path) -> None:
    content = b"\x80\x04csklearn.pipeline\nPipeline\n(NX\x07\x00\x00\x00predictcnumpy\nlog\nd\x86b."
    (tmp_path / "model.pkl").write_bytes(content)
    assert "pickle-unreadable" in rules(audit_path(tmp_path))


def test_archives_that_lead_outside_repeat_or_never_end(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("data")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("../up.txt"))
    (tmp_path / "bomb.pkl.gz").write_bytes(gzip.compress(b"\0" * (3 << 20)))
    deep = b"x"
    for _ in range(12):
        deep = zipped("in.zip", deep)
    (tmp_path / "deep.zip").write_bytes(deep)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as twice:
        twice.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            twice.writestr("a", "2")
    (tmp_path / "cut.zip").write_bytes(zipped("a", b"1" * 99)[:-30])
    (tmp_path / "fast.pkl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 20)
    found = {
        (path.name, rule)
        for path in tmp_path.iterdir()
        for rule in rules(audit_path(path, budget=Budget(2 << 20)))
    }
    assert found >= {
        ("links.tar", "symlink"), ("links.tar", "unsafe-path"), ("bomb.pkl.gz", "archive-too-large"),
        ("deep.zip", "archive-too-deep"), ("twice.zip", "duplicate-member"), ("cut.zip", "archive-unreadable"),
        ("fast.pkl.zst", "compression-unread"),
    }  # fmt: skip


def test_a_file_that_is_a_text_and_an_archive(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"hello\n" + zipped("m.pkl", call("os", "system", "id")))
    assert {finding.what for finding in audit_path(tmp_path).findings} == {"os.system"}


@pytest.mark.parametrize("name", ["model.pkl", "weights"])
def test_a_pickle_in_the_name_of_an_archives_member(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / name, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("cos\nsystem\n(S'id'\ntR."))
    assert "os.system" in {finding.what for finding in audit_path(tmp_path).findings}


def test_a_pickle_that_begins_with_a_text(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"X\0\0\0\x000" + call("os", "system", "id")[2:])
    assert "os.system" in {finding.what for finding in audit_path(tmp_path).findings}


def test_links_and_pipes_in_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    found = {(finding.path, finding.rule) for finding in audit_path(tmp_path).findings}
    assert found == {("link", "symlink"), ("folder", "symlink"), ("pipe", "special-file")}


def test_texts_and_weights_that_begin_like_pickles_pass(tmp_path: Path) -> None:
    for number, text in enumerate(
        [b"channels:\n- conda-forge\nd", b"cat\ndog\nRat\n", b"N.B. read", b"(i\n", b"x\x9c"]
    ):
        (tmp_path / f"{number}.txt").write_bytes(text)
    assert audit_path(tmp_path).findings == ()


def test_requirements_that_lead_elsewhere(tmp_path: Path) -> None:
    good = "numpy==2.1 ; python_version > '3.10'\nscikit-learn[extra]>=1.6,<2 # why\n-c constraints.txt\n"
    (tmp_path / "requirements.txt").write_text(good)
    (tmp_path / "conda.yaml").write_text(
        "channels: [conda-forge]\ndependencies: [python=3.11.7, pip<=24, {pip: [mlflow==3.17.2]}]"
    )
    (tmp_path / "python_env.yaml").write_text("python: 3.11.7\ndependencies: [-r requirements.txt]")
    assert audit_path(tmp_path).findings == ()
    bad = {
        "requirement-source": [
            "git+https://x/y",
            "a @ https://x/a.whl",
            "-e .",
            "./a",
            "../a.whl",
            "-r ../r.txt",
        ],
        "requirement-index": [
            "-i https://x",
            "--extra-index-url=https://x",
            "--find-links ./w",
            "--trusted-host x",
        ],
        "requirement-unreadable": ["--unknown-option", "numpy=>1"],
    }
    for rule, lines in bad.items():
        for line in lines:
            (tmp_path / "requirements.txt").write_text(line + "\n")
            assert rules(audit_path(tmp_path)) == {rule}, line
    (tmp_path / "requirements.txt").write_text("numpy --index-\\\nurl https://x\n")
    assert not audit_path(tmp_path).ok
    (tmp_path / "requirements.txt").write_text(good)
    (tmp_path / "conda.yaml").write_text("channels: ['https://x']\ndependencies: [evil::numpy, {pip: [./a]}]")
    assert rules(audit_path(tmp_path)) == {"requirement-index", "requirement-source"}


def test_mlmodel_that_leads_to_code_and_outside(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(
        "flavors:\n  python_function: {loader_module: my.loader, code: code, data: ../../x}\n"
        "  sklearn: {pickled_model: weights, skops_trusted_types: [os.system]}\n"
    )
    (tmp_path / "weights").write_bytes(b"not a pickle")
    (tmp_path / "pickle_module_info.txt").write_text("my.pickle")
    report = audit_path(tmp_path)
    assert rules(report) == {"model-loader", "model-code", "model-path", "model-trust", "pickle-unreadable"}
    assert {f.what for f in report.findings if f.rule == "model-loader"} == {"my.loader", "my.pickle"}
    accepted = audit_path(tmp_path, accept=tuple(rules(report)))
    assert accepted.ok
    assert len(accepted.findings) == len(report.findings)


def test_keras_configurations(tmp_path: Path) -> None:
    def keras(layer: dict[str, Any]) -> bytes:
        config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}}
        return zipped("config.json", json.dumps(config).encode())

    layers = {
        "dense": {"module": "keras.layers", "class_name": "Dense", "registered_name": None},
        "lambda": {"module": "keras.layers", "class_name": "Lambda"},
        "fetch": {"module": "keras.utils", "class_name": "get_file"},
        "run": {"module": "os", "class_name": "function", "config": "system"},
    }
    for name, layer in layers.items():
        (tmp_path / f"{name}.keras").write_bytes(keras(layer))
    found = {(finding.path.split(".")[0], finding.rule) for finding in audit_path(tmp_path).findings}
    assert found == {
        ("lambda", "keras-lambda"), ("fetch", "keras-foreign-code"), ("run", "keras-foreign-code")
    }  # fmt: skip


def test_hdf5_configurations_and_links(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Lambda"})
        file.create_group("layers")["weights"] = h5py.ExternalLink("/etc/passwd", "/x")
    assert rules(audit_path(tmp_path)) == {"keras-lambda", "hdf5-external"}


def test_onnx_data_and_operators(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    def model(domain: str, location: str) -> bytes:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        node = helper.make_node("Relu", ["x"], ["x"], domain=domain)
        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        graph = helper.make_graph([node], "g", [value], [value], [weights])
        return bytes(helper.make_model(graph).SerializeToString())

    assert onnx.__version__
    (tmp_path / "model.onnx").write_bytes(model("", "weights.bin"))
    assert audit_path(tmp_path).findings == ()
    for location in ("../../etc/passwd", "/etc/passwd", "a/../../b"):
        (tmp_path / "model.onnx").write_bytes(model("", location))
        assert rules(audit_path(tmp_path)) == {"onnx-external-data"}
    (tmp_path / "model.onnx").write_bytes(model("ai.evil", "weights.bin"))
    assert [finding.what for finding in audit_path(tmp_path).findings] == ["ai.evil"]
    (tmp_path / "model.onnx").write_bytes(model("", "w")[:-3])
    assert rules(audit_path(tmp_path)) == {"onnx-unreadable"}


def test_what_cannot_be_audited_is_an_error(tmp_path: Path) -> None:
    for arguments in (
        {"path": tmp_path / "none"},
        {"path": tmp_path, "accept": ["no-rule"]},
        {"path": tmp_path, "flavor": "x"},
    ):
        with pytest.raises(DataError):
            audit_path(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("opcode", [b"\x8d", b"\x8e", b"\x96"])
def test_a_length_beyond_all_memory_is_damage(tmp_path: Path, opcode: bytes) -> None:
    path = tmp_path / "long.pkl"
    path.write_bytes(b"\x80\x05" + opcode + (1 << 60).to_bytes(8, "little") + b"short.")
    report = audit_path(path)
    assert [finding.rule for finding in report.findings] == ["pickle-unreadable"]


MODEL = pickle.dumps(LogisticRegression().fit(np.eye(4), [0, 1, 0, 1]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_pickles_never_crash_and_never_pass_silently(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    if data.draw(st.booleans()):
        content = data.draw(st.binary(max_size=60))
        valid = False
    else:
        place = data.draw(st.integers(0, len(MODEL) - 1))
        content = data.draw(
            st.sampled_from(
                [
                    MODEL[:place],
                    MODEL[:place] + data.draw(st.binary(min_size=1, max_size=4)) + MODEL[place + 1 :],
                ]
            )
        )
        valid = content == MODEL
    path = tmp_path_factory.getbasetemp() / "mutated.pkl"
    path.write_bytes(content)
    report = audit_path(path)
    if not valid and report.ok:
        # It passes only where pickle itself follows the opcodes, or compressed or archived content is empty.
        assert _complete(content)


def _complete(content: bytes) -> bool:
    try:
        return [code.name for code, _, _ in pickletools.genops(content)][-1] == "STOP"
    except ValueError:
        return False
