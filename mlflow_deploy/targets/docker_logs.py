"""The log of a revision on Docker: the lines of its containers, oldest first."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

from mlflow_deploy.images.engine import Engine


def read_logs(engine: Engine, containers: list[str], *, follow: bool) -> Iterator[str]:
    """Lines of several containers, merged by time; with `follow`, then those that are written from now on."""
    if not follow:
        stamped = []
        for container in containers:
            text = engine.api.logs(container, timestamps=True).decode(errors="replace")
            stamped += [line.partition(" ") for line in text.splitlines()]
        yield from (line for _, _, line in sorted(stamped, key=lambda parts: parts[0]))
        return
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for container in containers:
        stream = engine.api.logs(container, stream=True, follow=True)
        threading.Thread(target=_pump, args=(stream, lines), daemon=True).start()
    open_streams = len(containers)
    while open_streams:
        line = lines.get()
        if line is None:
            open_streams -= 1
        else:
            yield line


def _pump(stream: Iterable[bytes], lines: queue.SimpleQueue[str | None]) -> None:
    """Pass on the lines of a stream, then None."""
    rest = b""
    try:
        for chunk in stream:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                lines.put(line.decode(errors="replace"))
    finally:
        if rest:
            lines.put(rest.decode(errors="replace"))
        lines.put(None)
