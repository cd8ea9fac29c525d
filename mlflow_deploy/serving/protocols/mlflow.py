"""MLflow's scoring protocol: POST /invocations, answer for answer."""

from __future__ import annotations

from typing import Any

from mlflow_deploy.serving.errors import UnsupportedType
from mlflow_deploy.serving.http import JSON, Request, Response, Route, not_ready
from mlflow_deploy.serving.worker import Worker

_PARSERS = {
    "application/json": "parse_json",
    "text/csv": "parse_csv",
    "application/vnd.apache.parquet": "parse_parquet",
}


def parser(content_type: str | None) -> str:
    """The name of the model's method that reads bodies of a Content-Type.

    Raises:
        UnsupportedType: the type is not on the list, or it names another charset than UTF-8.
    """
    known = _PARSERS.get(content_type or "")
    if known is not None:
        return known
    if not content_type:
        raise UnsupportedType("The request has no Content-Type", hint=f"Use one of {', '.join(_PARSERS)}")
    mime, *parameters = (part.strip() for part in content_type.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.lower() != "charset":
            raise UnsupportedType("The Content-Type may have a charset, and no other parameter")
        if value.strip('"').lower() != "utf-8":
            raise UnsupportedType("The server reads UTF-8 only")
    if mime not in _PARSERS:
        raise UnsupportedType(
            "The server does not read this Content-Type", hint=f"Use one of {', '.join(_PARSERS)}"
        )
    return _PARSERS[mime]


def routes(worker: Worker) -> dict[str, Route]:
    """The routes of the protocol."""

    def invocations(request: Request) -> Response | None:
        plane = worker.plane
        if plane is None or worker.metrics.shared.draining:
            raise not_ready(worker)
        model = plane.model
        content_type = request.environ.get("CONTENT_TYPE")
        parse = model.parse_json if content_type == JSON else getattr(model, parser(content_type))
        call = parse(request.body())
        if request.resume is not None:

            def finish(result: Any) -> Response:
                return Response(model.to_json(result))

            if plane.collect(call, request, finish, request.resume):
                return None
        return Response(model.to_json(plane.predict(call, request)))

    return {"/invocations": Route("POST", invocations, protocol="mlflow", scope="predict")}
