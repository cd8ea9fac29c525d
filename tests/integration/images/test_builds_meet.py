"""Builds that meet on one engine: each ends well, and nothing unnamed of theirs is left."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.images import labels
from mlflow_deploy.images.catalog import prune_images
from mlflow_deploy.images.context import RUNTIME_REPOSITORY, plan_image
from mlflow_deploy.images.engine import build_context, build_lock, find_image
from mlflow_deploy.images.errors import BuildFailed
from tests.integration.images.conftest import BASE, MARK, RUNTIMES, TEST_LABEL, make_spec
from tests.integration.images.test_faults import silent
from tests.wheels import small_lock

BUILD = """
import json, sys
from pathlib import Path
from mlflow_deploy.bundle import read_bundle
from mlflow_deploy.images.builder import build_image
from mlflow_deploy.images.spec import parse_image_spec
bundle, spec = read_bundle(Path(sys.argv[1])), parse_image_spec(json.loads(sys.argv[2]), environment={})
meet = [sys.argv[3]]
def progress(line):
    print(line, flush=True)
    if line == meet[0]:
        meet[0] = None
        sys.stdin.readline()
built = build_image(bundle, spec, progress)
print("image", built.id)
"""


def begin(
    bundle: Bundle, settings: dict[str, Any], homes: list[Path], meet: str, *, alone: bool
) -> list[subprocess.Popen[str]]:
    """Commands that build, each in a state folder of its own, when all have come to one point and wait there.

    Args:
        meet: what each says when it is at that point.
        alone: none sees the locks of the others, as on several machines.
    """
    commands = []
    for home in homes:
        home.mkdir()
        environment = {
            **os.environ,
            "MLFLOW_DEPLOY_HOME": str(home),
            **({"TMPDIR": str(home)} if alone else {}),
        }
        command = [sys.executable, "-c", BUILD, str(bundle.path), json.dumps(settings), meet]
        commands.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, env=environment,
            )
        )  # fmt: skip
    for each in commands:
        assert each.stdout is not None
        before: list[str] = []
        while not before or before[-1] != f"{meet}\n":
            before.append(each.stdout.readline())
            assert before[-1], before
    return commands


def go_on(commands: list[subprocess.Popen[str]]) -> list[str]:
    """Let the commands end; what each printed since."""
    for each in commands:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    printed = [each.communicate(timeout=240)[0] for each in commands]
    assert [each.returncode for each in commands] == [0] * len(commands), printed
    return printed


@pytest.mark.parametrize("alone", [False, True], ids=["one-machine", "two-machines"])
def test_two_builds_of_a_new_runtime_at_once(
    engine: Any, onnx_bundle: Bundle, tmp_path: Path, alone: bool
) -> None:
    given = {key: str(value) for key, value in small_lock(tmp_path).items()}
    settings = {**given, "base_image": BASE, "torch_index": "", "labels": {TEST_LABEL: MARK}}
    plan = plan_image(onnx_bundle, make_spec(**given), silent)
    RUNTIMES.add(plan.runtime)
    homes = [tmp_path / "home1", tmp_path / "home2"]
    if alone:
        meet = f"Building the runtime {plan.runtime}"
        commands = begin(onnx_bundle, settings, homes, meet, alone=True)
    else:
        meet = f"Waiting for another command that builds {plan.name}"
        # The test has the lock until both wait for it.
        with build_lock(engine, plan.runtime_digest, plan.name, silent):
            commands = begin(onnx_bundle, settings, homes, meet, alone=False)
    printed = go_on(commands)
    steps = sorted(sum(line.startswith("Step ") for line in text.splitlines()) for text in printed)
    # On one machine, one finds what the other one has made.
    assert (steps[0] > 0) == alone, printed
    assert steps[1] > 0, printed
    image = find_image(engine, plan.name)
    assert image is not None
    assert {text.splitlines()[-1] for text in printed} == {f"image {image.id}"}
    assert unnamed(engine, plan.runtime_digest) == []


def test_a_runtime_stays_while_a_build_goes_on(engine: Any) -> None:
    """A runtime is without a model until the build that made it is done."""
    dockerfile = f"FROM {BASE}\nLABEL {labels.KIND}=runtime {labels.RUNTIME}={MARK}\nCOPY own /own\n"
    files = {"Dockerfile": dockerfile.encode(), "own": MARK.encode()}
    name = f"{RUNTIME_REPOSITORY}:test-{MARK}"
    RUNTIMES.add(name)

    def useless() -> list[str]:
        return [each.shown for each in prune_images(keep=99, dry_run=True, progress=silent)]

    with build_lock(engine, MARK, name, silent):
        build_context(engine, name, files, silent, base=BASE, left=[labels.KIND, TEST_LABEL], stages=False)
        assert name not in useless()
    assert name in useless()


def test_a_build_leaves_the_images_of_others(engine: Any) -> None:
    """Only what is older than a day was surely left by a killed build; a failure removes its own steps."""
    mine = [f"{labels.RUNTIME}={MARK}"]
    before = set(unnamed(engine, MARK))
    young, old = (unnamed_image(engine, datetime.now(UTC) - timedelta(hours=age)) for age in (23, 25))
    assert set(unnamed(engine, MARK)) - before == {young, old}
    dockerfile = f"FROM {BASE}\nLABEL {labels.RUNTIME}={MARK}\nRUN exit 3\n"
    files = {"Dockerfile": dockerfile.encode()}
    with pytest.raises(BuildFailed, match="returned a non-zero code: 3"):
        build_context(
            engine, f"mlflow-deploy-test-own:{MARK}", files, silent, base=BASE, left=mine, stages=True
        )
    assert set(unnamed(engine, MARK)) - before == {young}
    engine.images.remove(young)


def unnamed(engine: Any, digest: str) -> list[str]:
    """Ids of the images without a name that came from builds of a runtime."""
    wanted = {"dangling": True, "label": f"{labels.RUNTIME}={digest}"}
    return [each["Id"] for each in engine.api.images(filters=wanted)]


def unnamed_image(engine: Any, created: datetime) -> str:
    """Load an image without a name, and with the label of a runtime, that was made at some time; its id."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": created.isoformat().replace("+00:00", "Z"),
            "config": {"Labels": {labels.RUNTIME: MARK}},
            "rootfs": {
                "type": "layers",
                "diff_ids": ["sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()],
            },
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": None, "Layers": ["layer.tar"]}]).encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in (
            ("layer.tar", layer.getvalue()),
            ("config.json", config),
            ("manifest.json", manifest),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    [image] = engine.images.load(archive.getvalue())
    return str(image.id)
