"""Draws what the demo's monitors found, month by month, and what followed, as one SVG file without scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 1000, 640
_LEFT, _RIGHT = 160, 970
_BARS_TOP, _BARS_BOTTOM = 110, 190
_LINES_TOP, _LINES_BOTTOM = 250, 410
_STORY = 470
_COLORS = {"ok": "#1a7f37", "warning": "#9a6700", "alert": "#cf222e"}
_COLUMNS_TOLD = 4

_STYLE = """
text{font:14px system-ui,sans-serif;fill:#1f2328;paint-order:stroke}
.halo{stroke:#fff;stroke-width:5px}.title{font-size:20px;font-weight:600}
.head{font-weight:600}.small{font-size:12px;fill:#57606a}.white{fill:#fff;font-weight:600}
.grid{stroke:#d0d7de}.before{stroke:#8c959f;stroke-dasharray:6 4;stroke-width:2;fill:none}
.estimated{stroke:#0969da;stroke-width:2;fill:none}.measured{stroke:#8250df;stroke-width:3;fill:none}
.box{fill:#f6f8fa;stroke:#d0d7de}
"""


def months(found: Mapping[str, Any]) -> str:
    """The picture.

    Args:
        found: what `DemoResult.to_dict` gives; `mlflow-deploy demo --json` prints the same.
    """
    periods: Sequence[Mapping[str, Any]] = found["periods"]
    step = (_RIGHT - _LEFT) / len(periods)
    middles = [_LEFT + step * (at + 0.5) for at in range(len(periods))]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        "<title>What the monitors found in real flights, and what followed</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="10" fill="#fff" stroke="#d0d7de"/>',
        _text(30, 38, "What the monitors found in real flights, and what followed", "title"),
        _text(30, 60, _compared(found), "small"),
        *_drift(periods, middles),
        *_quality(periods, middles),
        *_story(found),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _compared(found: Mapping[str, Any]) -> str:
    return (
        f"Each period is one window, compared with {found['reference_rows']:,} flights of February's last two "
        "weeks; 'late February' are the others of these days. A distance counts from 0.4 on."
    )


def _drift(periods: Sequence[Mapping[str, Any]], middles: Sequence[float]) -> Iterator[str]:
    """A bar per period, as high as the share of its columns that drifted."""
    yield _text(30, 104, "Drift", "head")
    yield _text(30, 122, "columns that", "small")
    yield _text(30, 137, "moved", "small")
    yield _line(_LEFT, _BARS_BOTTOM, _RIGHT, _BARS_BOTTOM, "grid")
    for period, middle in zip(periods, middles, strict=True):
        height = (_BARS_BOTTOM - _BARS_TOP) * period["drifted"] / period["columns"]
        color = _COLORS.get(period["drift"], "#57606a")
        yield (
            f'<rect x="{middle - 95:.0f}" y="{_BARS_BOTTOM - height:.1f}" width="60" height="{height:.1f}" '
            f'fill="{color}"/>'
        )
        yield _text(middle - 25, 108, f"{period['name']}: {period['drift']}", "head", color)
        yield _text(middle - 25, 126, f"{period['drifted']} of {period['columns']} columns", "small")
        for at, name in enumerate(list(period["moved"])[:_COLUMNS_TOLD]):
            yield _text(middle - 25, 143 + 15 * at, f"{name} {period['moved'][name]:.2f}", "small")


def _quality(periods: Sequence[Mapping[str, Any]], middles: Sequence[float]) -> Iterator[str]:
    """Accuracy before, estimated without labels, and measured when they came."""
    names = {"expected": "before", "estimated": "estimated", "measured": "measured"}
    values: list[float] = [period[key] for period in periods for key in names]
    low, high = min(values) - 0.035, max(values) + 0.02

    def height(value: float) -> float:
        return _LINES_BOTTOM - (value - low) / (high - low) * (_LINES_BOTTOM - _LINES_TOP)

    yield _text(30, _LINES_TOP + 4, "Accuracy", "head")
    legend = (
        ("before", "on the reference"),
        ("estimated", "without labels"),
        ("measured", "labels came"),
    )
    for at, (kind, words) in enumerate(legend):
        yield _line(30, _LINES_TOP + 22 + 34 * at, 54, _LINES_TOP + 22 + 34 * at, kind)
        yield _text(60, _LINES_TOP + 26 + 34 * at, kind)
        yield _text(60, _LINES_TOP + 40 + 34 * at, words, "small")
    yield _line(_LEFT, _LINES_BOTTOM, _RIGHT, _LINES_BOTTOM, "grid")
    for key, kind in names.items():
        points = [(middle, height(period[key])) for period, middle in zip(periods, middles, strict=True)]
        yield f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
    for period, middle in zip(periods, middles, strict=True):
        yield from _marks(period, middle, height)


def _marks(period: Mapping[str, Any], middle: float, height: Callable[[float], float]) -> Iterator[str]:
    color = _COLORS.get(period["performance"], "#57606a")
    # The higher number is above its mark and the other below it, since they may be close to each other.
    by_height = sorted(("estimated", "measured"), key=lambda key: -period[key])
    for key, shift in zip(by_height, (-12, 22), strict=True):
        at = height(period[key])
        fill = "#0969da" if key == "estimated" else "#8250df"
        yield f'<circle cx="{middle:.1f}" cy="{at:.1f}" r="5" fill="{fill}"/>'
        yield _text(middle - 50, at + shift, f"{period[key]:.3f} {key}", "halo", fill)
    yield _text(
        middle - 60,
        _LINES_BOTTOM + 22,
        f"quality in {period['name']}: {period['performance']}",
        "head",
        color,
    )


def _story(found: Mapping[str, Any]) -> Iterator[str]:
    """What was told and done, in boxes from left to right."""
    boxes = [("Alert", _alert_lines(found))]
    full = found.get("full")
    if full:
        gates = [f"{name}: {outcome}" for name, outcome, _ in full["gates"]]
        # A step goes on unless something speaks against it; that is no proof of the contrary.
        words = {"undecided": "nothing against it"}
        steps = [f"{share} %: {words.get(decision, decision)}" for share, decision, _ in full["steps"]]
        boxes += [
            (
                "New training",
                [
                    "April to July, but its",
                    "last two weeks, where",
                    f"accuracy is {full['metrics']['accuracy']:.3f}",
                ],
            ),
            ("Gates", gates),
            ("Canary", [*steps, f"{full['answered']:,} requests", f"{len(full['failed'])} failed"]),
            ("Promotion", [f"version {full['version']} serves", f"as revision {full['revision']}"]),
        ]
    width = (_WIDTH - 60 - 20 * (len(boxes) - 1)) / len(boxes)
    for at, (title, lines) in enumerate(boxes):
        x = 30 + at * (width + 20)
        yield f'<rect class="box" x="{x:.1f}" y="{_STORY}" width="{width:.1f}" height="140" rx="6"/>'
        yield _text(x + 12, _STORY + 24, title, "head", _COLORS["alert"] if at == 0 else "")
        for row, line in enumerate(lines[:6]):
            yield _text(x + 12, _STORY + 45 + 17 * row, line, "small")
        if at:
            yield _text(x - 16, _STORY + 75, "\N{RIGHTWARDS ARROW}", "head")


def _alert_lines(found: Mapping[str, Any]) -> list[str]:
    alerts: Sequence[str] = found["alerts"]
    kinds = [kind for kind in ("drift", "performance") if any(f", {kind}" in each for each in alerts)]
    return [f"{len(alerts)} messages arrived", *(f"of {kind}" for kind in kinds)]


def _text(x: float, y: float, words: str, kind: str = "", color: str = "") -> str:
    style = f' style="fill:{color}"' if color else ""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{name}{style}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
