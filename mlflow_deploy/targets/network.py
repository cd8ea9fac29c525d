"""Ports of this machine: which are free, who listens, who answers."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Iterable

import psutil

from mlflow_deploy.errors import ConfigError

_ANSWER_SECONDS = 2.0


def numeric(host: str) -> str:
    """The IP address of a host of this machine, such as localhost; addresses are left as they are.

    Raises:
        ConfigError: the name has no address.
    """
    if ":" in host:
        return host
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host!r}", why=error.strerror or str(error)) from error


def is_free(host: str, port: int) -> bool:
    """Whether nothing listens on the port.

    Raises:
        ConfigError: the address is not one of this machine, or the port needs more rights.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Ports of connections that were closed a moment ago count as free; ports that are listened on do not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise ConfigError(
                f"Cannot listen on port {port} of {host!r}",
                why=error.strerror or str(error),
                hint="Give an address of this machine with -C host=ADDRESS, such as 127.0.0.1 or 0.0.0.0",
            ) from error
    return True


def free_port(host: str, wanted: Iterable[int]) -> int:
    """The first of the wanted ports that nothing listens on, or else any free one."""
    for port in wanted:
        if is_free(host, port):
            return port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def listens(pid: int, port: int) -> bool:
    """Whether a process or one of its children listens on a TCP port."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    for member in family:
        try:
            connections = member.net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return True
    return False


def answers(host: str, port: int, *, tls: bool) -> bool:
    """Whether a scoring server says that it is ready, over a new connection."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    connection: http.client.HTTPConnection
    if tls:
        # Only asks whether it is up; callers who send data check the certificate.
        connection = http.client.HTTPSConnection(
            host,
            port,
            timeout=_ANSWER_SECONDS,
            context=ssl._create_unverified_context(),  # noqa: S323
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/ping", headers={"Connection": "close"})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
