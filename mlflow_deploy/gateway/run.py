"""Becomes Envoy in a gateway's folder: `python -m mlflow_deploy.gateway.run FOLDER [ENVOY ARGUMENTS]`.

Envoy keeps the process id, so signals of a supervisor reach it, and the kernel ends it when that dies.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import NoReturn

from mlflow_deploy.errors import DeployError
from mlflow_deploy.gateway.binary import envoy_binary
from mlflow_deploy.processes import die_with_parent

_BROKEN = 78


def main(folder: str, *arguments: str) -> NoReturn:
    """Replace this process by Envoy.

    Raises:
        SystemExit: that is not possible.
    """
    try:
        binary = envoy_binary()
        os.chdir(folder)
    except (DeployError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(_BROKEN)
    die_with_parent(signal.SIGTERM)
    # supervisord gives 1024 files, which is fewer connections than the gateway lets in.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.execv(binary, [str(binary), *arguments])  # noqa: S606


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Usage: python -m mlflow_deploy.gateway.run FOLDER [ENVOY ARGUMENTS]")
    main(*sys.argv[1:])
