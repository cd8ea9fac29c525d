"""Becomes Envoy in a gateway's folder: `python -m mlflow_deploy.gateway.run FOLDER [ENVOY ARGUMENTS]`.

Envoy keeps the process id, so signals of a supervisor reach it, and the kernel ends it when that dies.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import NoReturn

from mlflow_deploy.errors import DeployError
from mlflow_deploy.gateway.binary import envoy_binary

_PR_SET_PDEATHSIG = 1
_BROKEN = 78


def main(folder: str, *arguments: str) -> NoReturn:
    """Replace this process by Envoy.

    Raises:
        SystemExit: that is not possible.
    """
    parent = os.getppid()
    try:
        binary = envoy_binary()
        os.chdir(folder)
    except (DeployError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(_BROKEN)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refuses PR_SET_PDEATHSIG")
    # supervisord gives 1024 files, which is fewer connections than the gateway lets in.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if os.getppid() != parent:
        # It died before the request reached the kernel.
        sys.exit(0)
    os.execv(binary, [str(binary), *arguments])  # noqa: S606


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Usage: python -m mlflow_deploy.gateway.run FOLDER [ENVOY ARGUMENTS]")
    main(*sys.argv[1:])
