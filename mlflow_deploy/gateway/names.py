"""Names of Envoy's clusters: one a revision and protocol, and one more for mirrored requests."""

from __future__ import annotations

import dataclasses
import re

_NAME = re.compile(r"r(?P<revision>\d+)(?P<grpc>-grpc)?(?P<mirror>-mirror)?")


@dataclasses.dataclass(frozen=True)
class ClusterName:
    """Which traffic a cluster takes.

    Attributes:
        revision: its number.
        grpc: gRPC rather than HTTP.
        mirror: copies of requests. They have a cluster of their own so that they have statistics of their own.
    """

    revision: int
    grpc: bool = False
    mirror: bool = False

    def __str__(self) -> str:
        return f"r{self.revision}{'-grpc' * self.grpc}{'-mirror' * self.mirror}"


def parse_cluster_name(text: str) -> ClusterName | None:
    """The meaning of a cluster's name; None for a cluster that is not a revision's."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    return ClusterName(int(match["revision"]), grpc=bool(match["grpc"]), mirror=bool(match["mirror"]))
