"""The drift report as one page of HTML that needs nothing else."""

from __future__ import annotations

from html import escape

from mlflow_deploy.monitoring.report import ColumnDrift, DriftReport, Histogram

BARS = 24
_WIDTH, _HEIGHT = 360, 90

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1f24}
h1{margin:0 0 .2rem}.note{color:#57606a}.verdict{padding:.7rem 1rem;border-radius:6px;background:#dafbe1}
.verdict.alert{background:#ffebe9}.verdict.open{background:#fff8c5}
section{border-top:1px solid #d0d7de;padding:.6rem 0;display:flex}
section{gap:1.5rem;justify-content:space-between}
h2{font-size:1rem;margin:.2rem 0}.drifted h2{color:#cf222e}p{margin:.2rem 0}svg{flex:none}
.before{fill:#8c959f}
.after{fill:#0969da}.key span{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
"""


def page(report: DriftReport, title: str, note: str) -> str:
    """The page; every name and value of the data is escaped."""
    kind = "alert" if report.drifted else "" if report.enough_data else "open"
    order = sorted(
        report.columns.values(), key=lambda column: (not column.drifted, -(column.statistic or 0.0))
    )
    together = report.multivariate
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f'<p class="note">{escape(note)}</p>' if note else "",
        f'<p class="verdict {kind}">{escape(report.reason)}</p>',
        f"<p>{report.rows:,} rows compared with {report.rows_reference:,} of the reference. A window "
        f"without drift is reported as drifted with a chance of at most {report.false_alarm_rate:.3g}.</p>",
        f"<p>Relations between columns: {escape(together.reason)}{_sure(together.p_value)}.</p>"
        if together
        else "",
        '<p class="key"><span style="background:#8c959f"></span>reference'
        '<span style="background:#0969da"></span>window</p>',
        *(_section(column) for column in order),
        "</html>",
    ]
    return "\n".join(part for part in parts if part)


def _section(column: ColumnDrift) -> str:
    distance = (
        "" if column.statistic is None else f"<p>distance {column.statistic:.3f}{_sure(column.p_value)}</p>"
    )
    kind = "drifted" if column.drifted else "quiet"
    return (
        f'<section class="{kind}"><div><h2>{escape(column.name)}: {escape(column.state)}</h2>'
        f"<p>{escape(column.reason)}</p>{distance}</div>"
        f"{'' if column.histogram is None else _picture(column.histogram)}</section>"
    )


def _sure(p_value: float | None) -> str:
    """How likely the change is by chance, in words."""
    if p_value is None:
        return ""
    return ", by chance " + ("less than once in a million" if p_value < 1e-6 else f"p = {p_value:.2g}")


def _picture(histogram: Histogram) -> str:
    """Paired bars per bin, the most filled ones where there are many, as inline SVG."""
    bins = list(zip(histogram.names, histogram.before, histogram.after, strict=True))
    if len(bins) > BARS:
        kept = sorted(range(len(bins)), key=lambda at: -max(bins[at][1:]))[:BARS]
        bins = [bins[at] for at in sorted(kept)]
    tallest = max((max(before, after) for _, before, after in bins), default=0.0) or 1.0
    step = _WIDTH / len(bins)
    bars = []
    for at, (name, before, after) in enumerate(bins):
        words = f"<title>{escape(name)}: {before:.1%} to {after:.1%}</title>"
        for kind, share, left in (("before", before, 0.08), ("after", after, 0.5)):
            height = share / tallest * _HEIGHT
            bars.append(
                f'<rect class="{kind}" x="{(at + left) * step:.1f}" y="{_HEIGHT - height:.1f}" '
                f'width="{0.42 * step:.1f}" height="{height:.1f}">{words}</rect>'
            )
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f'<svg {size} role="img">{"".join(bars)}</svg>'
