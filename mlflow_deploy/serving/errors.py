"""What a request can fail with: one class per thing a caller can do about it, with its HTTP status.

A message says what is wrong with the request and never holds the caller's data or a stack trace; the whole
story goes to the log under the request id.
"""

from __future__ import annotations

from typing import ClassVar

from mlflow_deploy.errors import PredictionError


class RequestError(PredictionError):
    """Base of the errors that a request is answered with.

    Attributes:
        status: HTTP status of the answer.
        error_code: the answer's `error_code`, in MLflow's vocabulary.
        retry_after: seconds after which a repetition may succeed; 0 when it will not.
    """

    code = "REQUEST_FAILED"
    status: ClassVar[int] = 500
    error_code: ClassVar[str] = "INTERNAL_ERROR"
    retry_after: ClassVar[int] = 0


class BadRequest(RequestError):
    """The body cannot be read as any of the forms that the server takes."""

    code = "REQUEST_UNREADABLE"
    status = 400
    error_code = "BAD_REQUEST"


class InvalidValue(RequestError):
    """The body is readable but does not fit the model's signature."""

    code = "REQUEST_INVALID"
    status = 400
    error_code = "INVALID_PARAMETER_VALUE"


class Unauthenticated(RequestError):
    """The request carries no token that the server knows."""

    code = "REQUEST_UNAUTHENTICATED"
    status = 401
    error_code = "UNAUTHENTICATED"


class Forbidden(RequestError):
    """The token is known but not for this."""

    code = "REQUEST_FORBIDDEN"
    status = 403
    error_code = "PERMISSION_DENIED"


class UnknownPath(RequestError):
    """No such address or no such model."""

    code = "REQUEST_UNKNOWN_PATH"
    status = 404
    error_code = "ENDPOINT_NOT_FOUND"


class WrongMethod(RequestError):
    """The address exists, but not for this HTTP method."""

    code = "REQUEST_WRONG_METHOD"
    status = 405
    error_code = "METHOD_NOT_ALLOWED"


class TooLarge(RequestError):
    """The body is larger than `max_body_bytes` or has more rows than `max_rows`."""

    code = "REQUEST_TOO_LARGE"
    status = 413
    error_code = "REQUEST_TOO_LARGE"


class UnsupportedType(RequestError):
    """The content type or encoding is not one the server reads."""

    code = "REQUEST_UNSUPPORTED_TYPE"
    status = 415
    error_code = "UNSUPPORTED_MEDIA_TYPE"


class QueueFull(RequestError):
    """All model slots are busy and the queue is full."""

    code = "REQUEST_QUEUE_FULL"
    status = 429
    error_code = "RESOURCE_EXHAUSTED"
    retry_after = 1


class ModelFailed(RequestError):
    """The model raised while it computed."""

    code = "MODEL_FAILED"
    status = 500
    error_code = "INTERNAL_ERROR"

    def __init__(self) -> None:
        super().__init__(
            "The model failed on this request",
            hint="The server's log has the cause under the request id of this answer",
        )


class NotReady(RequestError):
    """The server is loading or stopping."""

    code = "SERVER_NOT_READY"
    status = 503
    error_code = "TEMPORARILY_UNAVAILABLE"
    retry_after = 1


class DeadlineExceeded(RequestError):
    """The answer was not there within `deadline_seconds`."""

    code = "REQUEST_DEADLINE"
    status = 504
    error_code = "DEADLINE_EXCEEDED"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The request took longer than the {seconds:g} s it may take",
            hint="Send fewer rows, or raise serving.deadline_seconds",
        )
