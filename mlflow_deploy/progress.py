"""Progress on the terminal: one live line while something takes long, plain log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

_LOG = logging.getLogger("mlflow_deploy")


@contextlib.contextmanager
def live_progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being done now, on standard error.

    On a terminal it is a spinner that is gone at the end; elsewhere each line goes to the logger
    `mlflow_deploy` at level INFO, which notebooks and CI can show or not.
    """
    if not sys.stderr.isatty():
        yield _LOG.info
        return
    from rich.console import Console

    with Console(stderr=True).status("Starting") as status:
        yield lambda line: status.update(f"{line} ...")


@contextlib.contextmanager
def mlflow_is_quiet() -> Iterator[None]:
    """Keep MLflow's own download bars and greetings out of our progress."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    quiet = {
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
