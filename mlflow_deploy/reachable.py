"""Whether an MLflow server answers, asked before MLflow itself, which would try an absent one for minutes."""

from __future__ import annotations


def no_answer(uri: str, *, seconds: float) -> str:
    """Why the HTTP server at a tracking or registry URI does not answer; empty when it does.

    Args:
        uri: stores that are not behind HTTP are not asked.
        seconds: how long it may take.
    """
    if not uri.startswith(("http://", "https://")):
        return ""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=seconds)
    except requests.RequestException as error:
        cause = error.__context__ or error
        return str(getattr(cause, "reason", cause)) or type(error).__name__
    return ""
