"""Quantiles and differences of what Envoy counted."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy.gateway.admin import Admin
from mlflow_deploy.gateway.stats import CallStats, Latency, read_stats


def test_quantiles() -> None:
    # Envoy writes 3 ms as a bin from 3 with width 0.1, and 120 ms as one from 120 with width 10.
    latency = Latency({(0.0, 0.0): 50, (3.0, 0.1): 45, (120.0, 10.0): 5})
    assert latency.quantile(0.25) == pytest.approx(0.5)
    assert latency.quantile(0.95) == pytest.approx(4.0)
    assert latency.quantile(0.99) == pytest.approx(128.0)
    assert Latency().quantile(0.5) is None


@given(st.lists(st.integers(0, 99), min_size=1, max_size=200), st.floats(0, 1))
def test_quantile_is_within_a_millisecond(values: list[int], share: float) -> None:
    bins = {(float(value), 0.1): values.count(value) for value in values}
    found = Latency(bins).quantile(share)
    assert found is not None
    exact = sorted(values)[min(len(values) - 1, int(share * len(values)))]
    below = sorted(values)[max(0, int(share * len(values)) - 1)]
    assert below <= found <= exact + 1


def test_what_came_since() -> None:
    earlier = CallStats(requests=5, succeeded=4, server_errors=1, latency=Latency({(1.0, 0.1): 5}))
    later = CallStats(
        requests=9, succeeded=7, server_errors=2, active=3, latency=Latency({(1.0, 0.1): 8, (2.0, 0.1): 1})
    )
    step = later.since(earlier)
    assert (step.requests, step.succeeded, step.server_errors, step.active) == (4, 3, 1, 3)
    assert step.latency.bins == {(1.0, 0.1): 3, (2.0, 0.1): 1}
    assert earlier.since(later) is earlier
    assert (earlier + step).requests == later.requests


class SlowPage(Admin):
    """A page that takes as long as through an engine, with an answer that no histogram ever gets."""

    def __init__(self) -> None:
        self.readings = 0

    def get(self, path: str, **query: str) -> str:
        self.readings += 1
        time.sleep(0.15)
        counts = {"membership_total": 1, "membership_healthy": 1, "upstream_rq_completed": 3}
        stats: list[object] = [
            {"name": f"cluster.r1.{name}", "value": value} for name, value in counts.items()
        ]
        bins = [{"lower_bound": 3, "width": 0.1, "count": 2}]
        histogram = {"name": "cluster.r1.upstream_rq_time", "totals": bins}
        return json.dumps({"stats": [*stats, {"histograms": {"details": [histogram]}}]})


def test_an_answer_that_is_in_no_histogram_is_not_waited_for_long() -> None:
    page, begun = SlowPage(), time.monotonic()
    served = read_stats(page)[1].served
    assert (served.requests, served.latency.count) == (3, 2)
    # More readings than this would keep a rollout on an engine from looking at it for many seconds.
    assert page.readings <= 6
    assert time.monotonic() - begun < 5
