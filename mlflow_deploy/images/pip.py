"""Runs pip on this machine, so that credentials, proxies and certificates never reach a build."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow_deploy.images.errors import (
    IndexUnreachable,
    NoDiskSpace,
    PipMissing,
    PythonMismatch,
    RequirementsUnresolved,
)
from mlflow_deploy.images.requirements import Wanted
from mlflow_deploy.images.spec import ImageSpec

Progress = Callable[[str], None]

_SHOWN = re.compile(r"\s*(Collecting|Downloading|Building|Processing|Using cached) (\S+)")
_UNREACHABLE = (
    "Max retries exceeded", "NewConnectionError", "ConnectTimeoutError", "SSLError", "ProxyError",
    "ReadTimeout", "Temporary failure in name resolution", "CERTIFICATE_VERIFY_FAILED",
)  # fmt: skip
# Wheels for these C libraries run on every Debian and Ubuntu that is still supported.
_MANYLINUX = (17, 24, 26, 27, 28, 31, 34)


def resolve(
    wanted: Wanted, spec: ImageSpec, *, torch_index: bool, progress: Progress
) -> list[dict[str, Any]]:
    """Have pip choose versions; returns the entries of its installation report.

    Raises:
        RequirementsUnresolved: no set of versions meets the requirements.
        IndexUnreachable: an index does not answer.
    """
    check_python(spec)
    with tempfile.TemporaryDirectory(prefix="mlflow-deploy-pip-") as work:
        folder = Path(work)
        (folder / "requirements.in").write_text("".join(f"{line}\n" for line in wanted.lines))
        (folder / "constraints.txt").write_text("".join(f"{line}\n" for line in wanted.constraints))
        arguments = ["install", "--dry-run", "--ignore-installed", "--report", str(folder / "report.json")]
        arguments += ["-r", str(folder / "requirements.in"), "-c", str(folder / "constraints.txt")]
        arguments += _platform_options(spec, folder) + _index_options(spec, torch_index)
        _pip(arguments, spec, "resolving the requirements", progress)
        report = json.loads((folder / "report.json").read_text())
    entries: list[dict[str, Any]] = report["install"]
    return entries


def fetch_wheels(lock: Path, into: Path, spec: ImageSpec, *, torch_index: bool, progress: Progress) -> None:
    """Fetch what a lock names as wheels into a folder; pip checks every hash, and builds what has no wheel.

    Raises:
        RequirementsUnresolved: a locked file is gone from the index, or its content changed.
        IndexUnreachable: an index does not answer.
    """
    check_python(spec)
    platform = _platform_options(spec, None)
    command = ["download", "--dest"] if platform else ["wheel", "--wheel-dir"]
    arguments = [*command, str(into), "--no-deps", "--require-hashes", "-r", str(lock)]
    _pip([*arguments, *platform, *_index_options(spec, torch_index)], spec, "fetching the packages", progress)


def check_python(spec: ImageSpec) -> None:
    """Refuse to resolve for another Python: environment markers would be those of this one."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if spec.python_version != here:
        raise PythonMismatch(spec.python_version, here, "The image has")


def _platform_options(spec: ImageSpec, target: Path | None) -> list[str]:
    """Options for wheels of another processor than this machine's; none for its own."""
    if spec.machine == ImageSpec().machine:
        return []
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", spec.python_version]
    for minor in _MANYLINUX:
        options += ["--platform", f"manylinux_2_{minor}_{spec.machine}"]
    options += ["--platform", f"manylinux2014_{spec.machine}"]
    return options + (["--target", str(target / "target")] if target else [])


def _index_options(spec: ImageSpec, torch_index: bool) -> list[str]:
    """Options that add to pip's own settings; what may hold a password goes by the environment."""
    options = ["--find-links", str(spec.wheels)] if spec.wheels else []
    if torch_index and spec.torch_index:
        options += ["--extra-index-url", spec.torch_index]
    if spec.ca_bundle:
        options += ["--cert", str(spec.ca_bundle)]
    return [*options, *spec.pip_args]


def _environment(spec: ImageSpec) -> dict[str, str]:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "NO_COLOR": "1"}
    environment.pop("PIP_REQUIRE_VIRTUALENV", None)
    secrets = {
        "PIP_INDEX_URL": spec.index_url,
        "http_proxy": spec.http_proxy,
        "https_proxy": spec.https_proxy,
    }
    environment.update({name: value.get_secret_value() for name, value in secrets.items() if value})
    if spec.extra_index_urls:
        urls = (url.get_secret_value() for url in spec.extra_index_urls)
        environment["PIP_EXTRA_INDEX_URL"] = " ".join(urls)
    if spec.no_proxy:
        environment["no_proxy"] = spec.no_proxy
    return environment


def _pip(arguments: Sequence[str], spec: ImageSpec, doing: str, progress: Progress) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    last: deque[str] = deque(maxlen=400)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment(spec)
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(line.rstrip())
                if shown := _SHOWN.match(line):
                    progress(f"pip: {shown[1]} {shown[2].rpartition('/')[2]}")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise _failure(list(last), doing)


def _failure(lines: list[str], doing: str) -> Exception:
    """What pip's output says went wrong."""
    text = "\n".join(lines)
    if "No module named pip" in text or "no such option: --report" in text:
        return PipMissing(sys.executable)
    if "No space left on device" in text:
        return NoDiskSpace(doing, "pip could not write")
    reasons = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    conflict = [
        line.strip() for line in lines if re.match(r"    (The user requested|\S+ \S+ depends on) ", line)
    ]
    unreachable = [line for line in lines if any(word in line for word in _UNREACHABLE)]
    # An index that does not answer looks to pip like one that has no such package.
    if unreachable and not conflict:
        return IndexUnreachable(redacted(unreachable[-1].removeprefix("WARNING: ")))
    found = [*reasons[:1], *conflict[:6]] if conflict else reasons[-2:]
    return RequirementsUnresolved(redacted("; ".join(found) or (lines[-1] if lines else "pip said nothing")))


def redacted(text: str) -> str:
    """The text without user names and passwords in its URLs."""
    return re.sub(r"://[^\s/@]+@", "://***@", text)
