"""The performance monitor's page for people: how good the window was, how sure that is, and what was served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mlflow_deploy.monitoring.estimate import PerformanceEstimate
from mlflow_deploy.monitoring.labels import LabelReport
from mlflow_deploy.monitoring.measured import PerformanceReport

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1f24}
h1{margin:0 0 .2rem}h2{font-size:1.05rem}.note{color:#57606a}
.verdict{padding:.7rem 1rem;border-radius:6px;background:#fff8c5}
.ok{background:#dafbe1}.alert{background:#ffebe9}table{border-collapse:collapse}
td,th{text-align:left;padding:.25rem .9rem .25rem 0;border-bottom:1px solid #d0d7de}
td.number{text-align:right;font-variant-numeric:tabular-nums}
"""


def performance_page(
    title: str,
    summary: str,
    state: str,
    reasons: Sequence[str],
    service: Mapping[str, float],
    report: PerformanceReport | None,
    estimates: Sequence[PerformanceEstimate],
    notes: Iterable[str],
    labels: LabelReport | None,
) -> str:
    """The page; every name and value of the data is escaped."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f'<p class="verdict {escape(state)}">{escape(state.replace("_", " "))}: {escape(summary)}</p>',
        *(f"<p>{escape(reason)}</p>" for reason in reasons if reason != summary),
        "<h2>Measured on labelled rows</h2>",
        _measured(report),
        "<h2>Estimated without labels</h2>",
        _estimated(estimates),
        "<h2>What was served</h2>",
        _table(("", ""), ((name, f"{value:.4g}") for name, value in sorted(service.items()))),
    ]
    if labels is not None:
        counts = labels.to_dict()
        shown = ("matched", "coverage", "late", "duplicates", "conflicting", "superseded")
        parts += [
            "<h2>Labels</h2>",
            _table(("", ""), ((name, _number(counts[name])) for name in shown)),
        ]
    parts += [f'<p class="note">{escape(note)}</p>' for note in dict.fromkeys(notes)]
    return "\n".join([*parts, "</html>"])


def _measured(report: PerformanceReport | None) -> str:
    if report is None or not report.metrics:
        return f"<p>{escape('No row has a label.' if report is None else report.reason)}</p>"
    rows = []
    for name, metric in report.metrics.items():
        compared = report.comparisons.get(name)
        rows.append(
            (
                name,
                _number(metric.value),
                f"{_number(metric.low)} to {_number(metric.high)}",
                _number(compared.reference) if compared else "",
                compared.state if compared else "",
            )
        )
    head = ("metric", "value", f"{report.confidence:.0%} interval", "reference", "verdict")
    return f"<p>{report.judged:,} labelled rows.</p>" + _table(head, rows)


def _estimated(estimates: Sequence[PerformanceEstimate]) -> str:
    if not estimates:
        return "<p>Nothing was estimated.</p>"
    rows = [
        (
            each.metric,
            _number(each.value),
            f"{_number(each.low)} to {_number(each.high)}",
            _number(each.reference),
        )
        for each in estimates
    ]
    return (
        _table(("metric", "estimate", "band", "reference"), rows)
        + f"<p class='note'>{escape(estimates[0].assumption)}</p>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"number" if at else "name"}">{escape(cell)}</td>' for at, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>" if top else f"<table>{body}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
