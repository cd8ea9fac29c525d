"""What the server says about itself: /ping, /health, /version and /metrics."""

from __future__ import annotations

import msgspec

from mlflow_deploy.serving.http import Request, Response, Route, not_ready
from mlflow_deploy.serving.worker import Worker


def routes(worker: Worker) -> dict[str, Route]:
    """The routes."""

    def ping(request: Request) -> Response:
        if not worker.ready:
            raise not_ready(worker)
        return Response(b"\n")

    def version(request: Request) -> Response:
        return Response(msgspec.json.encode(worker.version()))

    def metrics(request: Request) -> Response:
        # prometheus_client is loaded by the first scrape, not by the start of every worker.
        from mlflow_deploy.serving.exposition import exposition

        body, content_type = exposition(worker.metrics.shared, worker.identity)
        return Response(body, 200, content_type)

    return {
        "/ping": Route("GET", ping),
        "/health": Route("GET", ping),
        "/version": Route("GET", version),
        "/metrics": Route("GET", metrics, scope="metrics"),
    }
