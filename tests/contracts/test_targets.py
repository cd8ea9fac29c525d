"""The target contract over every target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.targets.base import Target
from mlflow_deploy.targets.local import LocalTarget
from mlflow_deploy.targets.memory import MemoryTarget
from mlflow_deploy.testing.targets import TargetContract
from tests import bundles as made


@pytest.fixture
def bundles(tmp_path: Path) -> Sequence[Bundle]:
    return [made.adder_bundle(tmp_path / "store", tmp_path, constant) for constant in (1.0, 2.0)]


@pytest.fixture
def broken_bundle(tmp_path: Path) -> Bundle:
    return made.broken_bundle(tmp_path / "store", tmp_path)


class TestMemoryTarget(TargetContract):
    @pytest.fixture
    def target(self, broken_bundle: Bundle) -> Target:
        target = MemoryTarget()
        target.broken.add(broken_bundle.digest)
        return target


class TestLocalTarget(TargetContract):
    @pytest.fixture
    def target(self, home: Path) -> Target:
        return LocalTarget(home)
