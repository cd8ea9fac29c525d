"""Requirements of a model that lead elsewhere than to named packages on the index of who installs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mlflow_deploy.security.archives import leads_outside

FILES = ("requirements.txt", "constraints.txt", "conda.yaml", "conda.yml", "python_env.yaml")
"""Names of the files that are read here."""

_CHANNELS = ("conda-forge", "defaults", "nodefaults", "main", "anaconda")
_INDEX_OPTIONS = (
    "-i", "--index-url", "--pypi-url", "--extra-index-url", "-f", "--find-links", "--trusted-host",
    "--no-index",
)  # fmt: skip
_HARMLESS_OPTIONS = ("--pre", "--prefer-binary", "--only-binary", "--require-hashes", "--no-cache-dir")


def audit_requirements(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Rule and requirement of everything in a file that must not be installed unseen.

    Args:
        name: the file's name, one of `FILES`.
        text: its content.
    """
    if name.endswith(".txt"):
        yield from _lines(text.replace("\\\n", " ").splitlines())
        return
    import yaml

    try:
        document: Any = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        yield "requirement-unreadable", f"{name} is no YAML"
        return
    if not isinstance(document, dict):
        yield "requirement-unreadable", f"{name} holds no settings"
        return
    for key in ("channels", "dependencies", "build_dependencies"):
        listed = document.get(key) or []
        if not isinstance(listed, list):
            yield "requirement-unreadable", f"{key} of {name} is no list"
            continue
        if key == "channels":
            yield from (("requirement-index", str(item)) for item in listed if item not in _CHANNELS)
        elif name == "python_env.yaml":
            yield from _lines([str(item) for item in listed])
        else:
            yield from _conda(listed)


def _conda(listed: list[Any]) -> Iterator[tuple[str, str]]:
    for item in listed:
        if isinstance(item, dict) and set(item) == {"pip"} and isinstance(item["pip"], list):
            yield from _lines([str(line) for line in item["pip"]])
        elif not isinstance(item, str):
            yield "requirement-unreadable", str(item)
        elif "::" in item:
            if item.partition("::")[0] not in _CHANNELS:
                yield "requirement-index", item
        elif not re.fullmatch(r"[A-Za-z0-9._-]+\s*([=<>!~ ][\w\s.*=<>!~,|+-]*)?", item):
            yield "requirement-source", item


def _lines(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if line and (rule := _rule(line)):
            yield rule, line


def _rule(line: str) -> str:
    """The rule that one line of pip requirements breaks, or ''."""
    from packaging.requirements import InvalidRequirement, Requirement

    if line.startswith("-"):
        option, value = re.fullmatch(r"(-[a-zA-Z]|--[\w-]+|-)[\s=]*(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        if option in _INDEX_OPTIONS:
            return "requirement-index"
        if option in ("-r", "-c", "--requirement", "--constraint"):
            return "requirement-source" if "://" in value or leads_outside(value.strip("'\"")) else ""
        if option in ("-e", "--editable"):
            return "requirement-source"
        return "" if option in _HARMLESS_OPTIONS else "requirement-unreadable"
    line = re.sub(r"\s--hash[=\s]\S+", "", line).strip()
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        looks_elsewhere = "/" in line or "\\" in line or re.search(r"\.(whl|zip|tar\.\w+|tgz)\b", line)
        return "requirement-source" if looks_elsewhere else "requirement-unreadable"
    return "requirement-source" if requirement.url or line.lower().endswith((".whl", ".zip")) else ""
