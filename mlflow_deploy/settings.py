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
    otlp_endpoint: str = setting(
        "",
        "OpenTelemetry collector that gets a span of each prediction request over OTLP/HTTP, such as "
        "http://collector:4318; unset = as OTEL_EXPORTER_OTLP_ENDPOINT says, if anything",
    )
    trace_share: float = setting(
        1.0, "Share of these requests that get a span, 0 to 1; with a caller's traceparent its flag decides"
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
    device: str = setting(
        "auto",
        "What the model computes on: auto = a GPU that its library can use, or else the CPU; cpu; gpu = a GPU, "
        "and without one the server does as gpu_fallback says",
    )
    gpu_fallback: str = setting(
        "refuse", "What a server with device=gpu does without a GPU: refuse to start, or run on the cpu"
    )
    gpu_provider: str = setting(
        "auto",
        "What runs ONNX models on a GPU: cuda, which auto takes too, or tensorrt, which first builds an engine "
        "for each new shape of the input and needs its libraries",
    )
    engine_cache: str = setting(
        "", "Folder where TensorRT keeps the engines that it built; unset = they are built at each start"
    )
    grpc: bool = setting(False, "Also speak the Open Inference Protocol over gRPC")
    grpc_port: int = setting(0, "Port of gRPC; 0 = the target chooses, or else the HTTP port plus one")
    page: bool = setting(True, "Serve the human page at / and the OpenAPI document at /openapi.json")


GPU_FORMS = frozenset({"onnx", "pyfunc", "savedmodel", "torch_export", "torchscript"})
"""Forms of servables whose libraries compute on GPUs."""

STORAGE_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
"""Protocol of an object store -> the package by which fsspec reaches it."""


def storage_packages(url: str) -> tuple[str, ...]:
    """The packages by which a monitor reaches shared storage; none for an empty URL."""
    package = STORAGE_PACKAGES.get(url.partition("://")[0], "")
    return tuple(name for name in ("fsspec", package) if name and url)


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """Which requests one revision's scoring server keeps. Keys are given as `-C capture.KEY=VALUE`."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name

    enabled: bool = setting(
        True, "Keep requests with their answers for the monitors; with monitor=none nothing is kept"
    )
    sample: float = setting(1.0, "Share of the requests that are kept, 0 to 1, chosen by their ids")
    columns: tuple[str, ...] = setting((), "Features that are kept, such as age,income; unset = all")
    exclude: tuple[str, ...] = setting((), "Features that are not kept")
    hash: tuple[str, ...] = setting(
        (), "Features of which only a keyed hash is kept: equal values stay equal, and nobody reads them"
    )
    hash_key: str = setting(
        "", "Where the key of these hashes comes from, at least 16 bytes: env:NAME or file:PATH"
    )
    key: str = setting(
        "", "Feature that the `key` of a label names, which must tell the rows apart; unset = the request id"
    )
    max_values: int = setting(256, "Most values of a tensor that are kept per row; larger ones are left out")
    queue_requests: int = setting(
        20_000, "Requests that may wait in each worker to be written; more are not kept, and counted"
    )
    queue_rows: int = setting(200_000, "Rows of requests that may wait so")
    flush_seconds: float = setting(0.5, "How often what waits is written, which a kill would lose")
    file_bytes: int = setting(64 * 1024 * 1024, "Size at which a worker begins a new file")
    file_seconds: float = setting(600.0, "Age at which a worker begins a new file")
    max_days: float = setting(30.0, "How long rows are kept; 0 = for ever")
    max_bytes: int = setting(
        10 * 1024**3, "Most bytes that the rows of a revision may take; the oldest go first; 0 = any"
    )
    url: str = setting(
        "",
        "Shared storage that the monitor moves complete files of rows to, as any URL of fsspec, such as "
        "s3://BUCKET/PREFIX; unset = they stay in the data folder",
    )

    def refusal(self) -> str:
        """Why these settings cannot be used, empty when they can."""
        least = {
            "max_values": 1, "queue_requests": 1, "queue_rows": 1, "flush_seconds": 0.01, "file_bytes": 4096,
            "file_seconds": 1, "max_days": 0, "max_bytes": 0, "sample": 0,
        }  # fmt: skip
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                return f"capture.{name} must be at least {bound}, and is {getattr(self, name)}"
        if self.url and (why := _unusable(self.url)):
            return f"capture.url {why}"
        if self.sample > 1:
            return f"capture.sample is a share between 0 and 1, and is {self.sample}"
        if self.hash and not self.hash_key.startswith(("env:", "file:")):
            return (
                "capture.hash needs capture.hash_key as env:NAME or file:PATH, since values would be guessed"
            )
        return ""


def _unusable(url: str) -> str:
    """What is wrong with a URL of shared storage, empty when nothing is."""
    protocol, found, place = url.partition("://")
    if not found or not protocol or not place:
        return f"must be a URL such as s3://BUCKET/PREFIX, and is {url!r}"
    if protocol == "memory":
        return "cannot be in memory, which ends with each process of the monitor"
    if ":" in place.partition("/")[0].rpartition("@")[0]:
        return "must hold no password: the package of its protocol takes it from the environment"
    return ""
