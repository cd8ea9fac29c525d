"""POST /admin/recorder: switches recording and hands out the records, to the deployment's own commands."""

from __future__ import annotations

import hmac

import msgspec

from mlflow_deploy.serving.auth import Guard
from mlflow_deploy.serving.errors import BadRequest, UnknownPath
from mlflow_deploy.serving.http import Request, Response, Route
from mlflow_deploy.serving.recorder import Order
from mlflow_deploy.serving.worker import Worker

RECORDER = "/admin/recorder"
_decode = msgspec.json.Decoder(Order).decode


def routes(worker: Worker, guard: Guard | None) -> dict[str, Route]:
    """The route. It takes the deployment's own secret or a token with the scope `admin`, and nobody without."""
    control = worker.config.control.encode()

    def recorder(request: Request) -> Response:
        header = request.environ.get("HTTP_AUTHORIZATION") or ""
        if not control or not hmac.compare_digest(header.encode(), b"Bearer " + control):
            if guard is None:
                # Without tokens nobody but the deployment itself may know that there is something.
                raise UnknownPath(
                    "There is nothing at this address", hint="The server's page at / lists its addresses"
                )
            guard.check(header, "admin")
        try:
            order = _decode(request.body())
        except msgspec.MsgspecError as error:
            raise BadRequest("The body is no order to the recorder") from error
        reply = worker.recorder.shared.drain(order)
        worker.recorder.refresh()
        return Response(msgspec.msgpack.encode(reply), content_type="application/vnd.msgpack")

    return {RECORDER: Route("POST", recorder)}
