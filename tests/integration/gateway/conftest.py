"""Replicas that the gateway tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.gateway.toy import Toy


@pytest.fixture
def toys() -> Iterator[list[Toy]]:
    """Three replicas: one, two, three."""
    found = [Toy(name) for name in ("one", "two", "three")]
    yield found
    for toy in found:
        toy.close()
