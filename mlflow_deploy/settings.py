"""Settings of the scoring server: one definition for the `-C` keys, the settings file and the process.

Plain dataclasses, because the server process reads them without pydantic; `config.DeploymentSpec` validates
them at the user's end, `serving` decodes them with msgspec.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, doc: str) -> Any:
    """A dataclass field with its documentation; `mlflow-deploy`, `target_help` and the README print it."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """How one revision's scoring server runs. Keys are given as `-C serving.KEY=VALUE`."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name

    workers: int = setting(1, "Server processes of a revision")
    threads: int = setting(0, "Threads that run the model in each worker; 0 = the CPU quota of the process")
    intra_op_threads: int = setting(
        1, "Threads that ONNX Runtime may use inside one model call; 0 = the CPU quota of the process"
    )
    spinning: bool = setting(
        False, "Let idle ONNX Runtime threads spin: faster calls, but up to a core is burnt when idle"
    )
    max_concurrency: int = setting(
        0, "Requests that may be in the model at once in each worker; 0 = threads, times max_batch_size"
    )
    queue_size: int = setting(64, "Requests that may wait for the model in each worker; more get 429")
    deadline_seconds: float = setting(
        60.0, "How long a request may take, waiting included; a longer one gets 504; 0 = no limit"
    )
    max_batch_size: int = setting(
        1, "Rows of separate requests that are computed in one model call; 1 = no micro-batching"
    )
    max_batch_delay_ms: float = setting(
        0.0, "How long a request may wait for others to share its model call, in milliseconds"
    )
    max_body_bytes: int = setting(10 * 1024 * 1024, "Largest request body in bytes; a larger one gets 413")
    max_rows: int = setting(1_000_000, "Most rows in one request; more get 413")
    warm_up: bool = setting(True, "Run the input example through the model before the server says ready")
    drain_seconds: float = setting(
        10.0, "On SIGTERM, how long requests in flight may take to finish before they are cut off"
    )
    drain_delay_seconds: float = setting(
        0.0, "On SIGTERM, how long the port stays open while /ping already answers 503, for load balancers"
    )
    log_level: str = setting("info", "Log level of the server: debug, info, warning or error")
    log_format: str = setting("json", "Form of the server's log lines: json or text")
    access_log: float = setting(
        0.0, "Share of answered requests that get a log line, 0 to 1; failed requests always get one"
    )
    auth: str = setting(
        "none", "Who may call: none = anyone who reaches the port, token = holders of a token"
    )
    auth_file: str = setting(
        "", "File with the hashed tokens for auth=token; a change is seen without restart"
    )
    tls_cert: str = setting("", "Certificate file in PEM form; with tls_key the server speaks TLS")
    tls_key: str = setting("", "Private key file of tls_cert in PEM form")
    tls_client_ca: str = setting("", "CA file in PEM form; when given, callers need a certificate of this CA")
    seal_key: str = setting(
        "",
        "Where the key of a sealed model comes from: file:PATH, env:NAME or command:PROGRAM ARGUMENTS; unset = "
        "as the environment variable MLFLOW_DEPLOY_SEAL_KEY says",
    )
    grpc: bool = setting(False, "Also speak the Open Inference Protocol over gRPC")
    grpc_port: int = setting(0, "Port of gRPC; 0 = the target chooses, or else the HTTP port plus one")
    page: bool = setting(True, "Serve the human page at / and the OpenAPI document at /openapi.json")
