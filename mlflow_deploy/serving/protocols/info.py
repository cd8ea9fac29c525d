"""What the server says about itself: /ping, /health, /version, /metrics, /openapi.json and the page at /."""

from __future__ import annotations

import msgspec

from mlflow_deploy.serving.http import Request, Response, Route, not_ready
from mlflow_deploy.serving.worker import Worker

# The page runs its own script and style, and nothing else may run in it or frame it.
_PAGE_HEADERS = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    ("x-content-type-options", "nosniff"),
]


def routes(worker: Worker) -> dict[str, Route]:
    """The routes."""

    def ping(_: Request) -> Response:
        if not worker.ready:
            raise not_ready(worker)
        return Response(b"\n")

    def version(_: Request) -> Response:
        return Response(msgspec.json.encode(worker.version()))

    def metrics(_: Request) -> Response:
        # prometheus_client is loaded by the first scrape, not by the start of every worker.
        from mlflow_deploy.serving.exposition import exposition

        worker.metrics.flush()
        body, content_type = exposition(worker.metrics.shared, worker.info)
        return Response(body, 200, content_type)

    def openapi(_: Request) -> Response:
        from mlflow_deploy.serving.openapi import document

        return Response(msgspec.json.encode(document(worker)))

    def page(_: Request) -> Response:
        from mlflow_deploy.serving import page as human

        return Response(human.page(worker).encode(), 200, "text/html; charset=utf-8", _PAGE_HEADERS)

    table = {"/": Route("GET", page), "/openapi.json": Route("GET", openapi)} if worker.settings.page else {}
    return {
        **table,
        "/ping": Route("GET", ping),
        "/health": Route("GET", ping),
        "/version": Route("GET", version),
        "/metrics": Route("GET", metrics, scope="metrics"),
    }
