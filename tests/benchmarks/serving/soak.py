"""A long run at a fixed rate: no request may fail, and memory must stay flat.

Run as `python -m tests.benchmarks.serving.soak [SECONDS] [RATE]`; prints failures and resident sizes.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.integration.serving import bundles
from tests.integration.serving.running import Running, running, workers

_THREADS = 4


def resident(server: Running) -> float:
    """Resident size of all processes of the server, in MiB."""
    total = 0
    for pid in [server.process.pid, *workers(server)]:
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return total / 2**20


def ask(port: int, body: bytes, until: float, gap: float, failures: list[str], counts: list[int]) -> None:
    """Send a request each `gap` seconds over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    planned = time.monotonic()
    while planned < until:
        time.sleep(max(0.0, planned - time.monotonic()))
        planned += gap
        try:
            connection.request("POST", "/invocations", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(str(answer.status))
        except OSError as error:
            failures.append(repr(error))
            connection.close()
        counts.append(1)


def soak(seconds: float, rate: float) -> dict[str, float]:
    """Run, and return requests, failures and resident sizes after a tenth of the time and at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, bundle = bundles.boosting(folder)
        example = bundle.document("example.json")
        assert example is not None
        body = json.dumps(example["request"]).encode()
        failures: list[str] = []
        counts: list[int] = []
        with running(bundle.path, folder, workers=2) as server:
            end = time.monotonic() + seconds
            threads = [
                threading.Thread(target=ask, args=(server.port, body, end, _THREADS / rate, failures, counts))
                for _ in range(_THREADS)
            ]
            for thread in threads:
                thread.start()
            time.sleep(seconds / 10)
            early = resident(server)
            for thread in threads:
                thread.join()
            return {
                "requests": len(counts),
                "failed": len(failures),
                "early_mib": round(early, 1),
                "last_mib": round(resident(server), 1),
            }


if __name__ == "__main__":
    arguments = [float(argument) for argument in sys.argv[1:]]
    sys.stdout.write(json.dumps(soak(*(arguments + [600.0, 500.0][len(arguments) :]))) + "\n")
