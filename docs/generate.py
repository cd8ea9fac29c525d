"""Write the generated parts of the documentation; with --check, fail when they are out of date."""

from __future__ import annotations

import sys
from pathlib import Path

from click.testing import CliRunner

from mlflow_deploy.cli.settings import settings
from mlflow_deploy.monitoring.definitions import markdown

ROOT = Path(__file__).resolve().parent.parent


def generated() -> dict[str, str]:
    """Name of each generated part and its text."""
    parts = {"settings": CliRunner().invoke(settings, ["--markdown"], catch_exceptions=False).output.strip()}
    parts["metrics"] = markdown()
    speed = ROOT / "docs" / "serving_speed.md"
    # Only a run of the benchmark writes it; without one the part stays as it is.
    if speed.exists():
        parts["serving speed"] = _table(speed)
    return parts


def _table(path: Path) -> str:
    """The lines of the table in a document that a benchmark wrote, with what it says about the run."""
    paragraphs = path.read_text(encoding="utf-8").strip().split("\n\n")
    return "\n\n".join(paragraphs[1:])


def with_parts(text: str, parts: dict[str, str]) -> str:
    """The document `text` with each part between its markers replaced."""
    for name, part in parts.items():
        start, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        if start in text:
            before, _, rest = text.partition(start)
            _, _, after = rest.partition(end)
            text = f"{before}{start}\n{part}\n{end}{after}"
    return text


def main() -> int:
    """Write the parts, or with --check return 1 when a document is out of date."""
    parts = generated()
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        new = with_parts(text, parts)
        if new != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"Out of date: {', '.join(stale)}. Run `make docs`.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
