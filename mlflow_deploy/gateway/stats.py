"""Statistics per revision, read from Envoy."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from mlflow_deploy.gateway.admin import Admin
from mlflow_deploy.gateway.names import ClusterName, parse_cluster_name

_SERIES = (
    "upstream_rq_completed|upstream_rq_[1-5]xx|upstream_rq_active|upstream_rq_retry|upstream_rq_time"
    r"|upstream_cx_connect_fail|membership_total|membership_healthy|grpc\.[0-9]+"
)
_PATTERN = rf"^cluster\.r[0-9]+(-grpc)?(-mirror)?\.({_SERIES})$"
_STATISTIC = re.compile(r"cluster\.(?P<cluster>[^.]+)\.(?P<series>.+)")
# gRPC statuses that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS
_GRPC_SERVER_ERRORS = {2, 4, 13, 14, 15}
_RESOLUTION_MS = 1.0
_FLUSH_SECONDS = 0.01
# Answers in flight while a cluster was replaced are counted but in no histogram, however long one waits. A
# reading through an engine takes half of this by itself.
_FLUSH_LIMIT_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long answers took, as a histogram in milliseconds.

    Envoy counts whole milliseconds, rounded down, with two significant digits.

    Attributes:
        bins: (lower bound, width) -> answers.
    """

    bins: Mapping[tuple[float, float], int] = dataclasses.field(default_factory=dict)

    def quantile(self, share: float) -> float | None:
        """The time in milliseconds within which this share of the answers came; None before the first."""
        rank = share * self.count
        below = 0
        for (lower, width), count in sorted(self.bins.items()):
            if count and below + count >= rank:
                return lower + max(width, _RESOLUTION_MS) * max(0.0, rank - below) / count
            below += count
        return None

    @property
    def count(self) -> int:
        """Number of answers."""
        return sum(self.bins.values())

    def __add__(self, other: Latency) -> Latency:
        return self._merge(other, 1)

    def __sub__(self, other: Latency) -> Latency:
        return self._merge(other, -1)

    def _merge(self, other: Latency, sign: int) -> Latency:
        counts = dict(self.bins)
        for bounds, count in other.bins.items():
            counts[bounds] = counts.get(bounds, 0) + sign * count
        return Latency({bounds: count for bounds, count in sorted(counts.items()) if count})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallStats:
    """Requests that the gateway sent to a revision, counted since the gateway was started.

    Attributes:
        requests: answered ones, by the revision or, when it could not be reached, by the gateway for it.
        succeeded: with status 100 to 399, or gRPC OK.
        client_errors: with status 4xx, or a gRPC status that blames the caller.
        server_errors: with status 5xx, or a gRPC status that blames the server.
        retries: tries after the first one.
        connect_failures: connections that could not be made; health checks are not in it.
        active: in flight now.
        latency: from the request's end to the answer's.
    """

    requests: int = 0
    succeeded: int = 0
    client_errors: int = 0
    server_errors: int = 0
    retries: int = 0
    connect_failures: int = 0
    active: int = 0
    latency: Latency = dataclasses.field(default_factory=Latency)

    @property
    def p50_ms(self) -> float | None:
        """Median latency."""
        return self.latency.quantile(0.50)

    @property
    def p95_ms(self) -> float | None:
        """Latency that 95 % of the answers kept within."""
        return self.latency.quantile(0.95)

    @property
    def p99_ms(self) -> float | None:
        """Latency that 99 % of the answers kept within."""
        return self.latency.quantile(0.99)

    def since(self, earlier: CallStats) -> CallStats:
        """What came after `earlier`; all of it when the gateway was started again in between."""
        counted = ("requests", "succeeded", "client_errors", "server_errors", "retries", "connect_failures")
        if any(getattr(self, name) < getattr(earlier, name) for name in counted):
            return self
        return CallStats(
            **{name: getattr(self, name) - getattr(earlier, name) for name in counted},
            active=self.active,
            latency=self.latency - earlier.latency,
        )

    def __add__(self, other: CallStats) -> CallStats:
        names = [field.name for field in dataclasses.fields(self)]
        return CallStats(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevisionStats:
    """What the gateway knows of one revision.

    Attributes:
        revision: its number.
        replicas: how many it has.
        healthy: how many of them are neither failing health checks nor ejected.
        served: requests whose answer went to the client, HTTP and gRPC together.
        mirrored: copies whose answer was thrown away.
    """

    revision: int
    replicas: int
    healthy: int
    served: CallStats
    mirrored: CallStats

    @property
    def asked(self) -> CallStats:
        """Everything that the revision was asked, by clients and by copies."""
        return self.served + self.mirrored


def read_stats(admin: Admin) -> dict[int, RevisionStats]:
    """Statistics of each revision that the gateway has now, by number."""
    first = _read(admin)
    # A reading has the workers bring their histograms up to date, but does not wait for them.
    until = time.monotonic() + _FLUSH_LIMIT_SECONDS
    while True:
        time.sleep(_FLUSH_SECONDS)
        found = _read(admin)
        whole = all(_has_latencies(stats, found.get(number)) for number, stats in first.items())
        if whole or time.monotonic() > until:
            return found


def _has_latencies(earlier: RevisionStats, later: RevisionStats | None) -> bool:
    """Whether the answers that were counted before are in the histograms by now."""
    if later is None:
        return True
    return (
        later.served.latency.count >= earlier.served.succeeded
        and later.mirrored.latency.count >= earlier.mirrored.succeeded
    )


def _read(admin: Admin) -> dict[int, RevisionStats]:
    text = admin.get("/stats", filter=_PATTERN, format="json", histogram_buckets="detailed")
    clusters: dict[str, dict[str, Any]] = {}
    for name, value in _flat(msgspec.json.decode(text)["stats"]):
        if match := _STATISTIC.fullmatch(name):
            clusters.setdefault(match["cluster"], {})[match["series"]] = value
    found: dict[int, RevisionStats] = {}
    for cluster, series in sorted(clusters.items()):
        name_ = parse_cluster_name(cluster)
        # A removed cluster leaves its counters behind for a while.
        if name_ is not None and "membership_total" in series:
            _add(found, name_, series)
    return found


def _add(found: dict[int, RevisionStats], name: ClusterName, series: Mapping[str, Any]) -> None:
    # Envoy throws the answers to copies away before it reads their gRPC status, so that only HTTP's counters
    # move; what a copy failed with is seen by comparing the rows.
    calls = _calls(series, grpc=name.grpc and not name.mirror)
    known = found.get(name.revision)
    if known is None:
        known = RevisionStats(
            revision=name.revision,
            replicas=series["membership_total"],
            healthy=series["membership_healthy"],
            served=CallStats(),
            mirrored=CallStats(),
        )
    found[name.revision] = (
        dataclasses.replace(known, mirrored=known.mirrored + calls)
        if name.mirror
        else dataclasses.replace(known, served=known.served + calls)
    )


def _calls(series: Mapping[str, Any], *, grpc: bool) -> CallStats:
    if grpc:
        statuses = {int(key[5:]): int(value) for key, value in series.items() if key.startswith("grpc.")}
        requests, succeeded = sum(statuses.values()), statuses.get(0, 0)
        server = sum(count for status, count in statuses.items() if status in _GRPC_SERVER_ERRORS)
        client = requests - succeeded - server
    else:
        requests = int(series.get("upstream_rq_completed", 0))
        client, server = (int(series.get(f"upstream_rq_{digit}xx", 0)) for digit in (4, 5))
        succeeded = requests - client - server
    return CallStats(
        requests=requests,
        succeeded=succeeded,
        client_errors=client,
        server_errors=server,
        retries=int(series.get("upstream_rq_retry", 0)),
        connect_failures=int(series.get("upstream_cx_connect_fail", 0)),
        active=int(series.get("upstream_rq_active", 0)),
        latency=series.get("upstream_rq_time", Latency()),
    )


def _flat(stats: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """(name, number or histogram) of each statistic in Envoy's JSON."""
    found: list[tuple[str, Any]] = []
    for entry in stats:
        if "histograms" not in entry:
            found.append((entry["name"], entry.get("value", 0)))
            continue
        for histogram in entry["histograms"].get("details", []):
            bins = {
                (float(bin_["lower_bound"]), float(bin_["width"])): int(bin_["count"])
                for bin_ in histogram["totals"]
            }
            found.append((histogram["name"], Latency(bins)))
    return found
