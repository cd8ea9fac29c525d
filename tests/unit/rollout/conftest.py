"""Two bundles for all tests of rollouts, made once."""

from __future__ import annotations

import pytest

from mlflow_deploy.bundle import Bundle
from tests.bundles import adder_bundle


@pytest.fixture(scope="session")
def adders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    """Revision -> bundle."""
    folder = tmp_path_factory.mktemp("adders")
    return {number: adder_bundle(folder / "store", folder, float(number)) for number in (1, 2)}
