"""Log lines of the server, as JSON or text, with the request id they belong to."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

LOGGER = "mlflow_deploy.serving"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, message, and what `extra={"fields": ...}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """One readable line: time, level, message, fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the standard library
        """The line with its fields."""
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        return super().formatMessage(record) + (f" [{fields}]" if fields else "")


def set_up(level: str, form: str) -> None:
    """Send all log lines of the process to standard error in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(level.upper())
    logging.captureWarnings(True)


def logger() -> logging.Logger:
    """The server's logger."""
    return logging.getLogger(LOGGER)
