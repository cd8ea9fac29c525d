"""The parity report as a page for people: what was compared, how far it differs, the worst rows."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from mlflow_deploy.conversion.report import DatasetParity, ParityReport, plain

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;"
    "text-align:right;vertical-align:top}td:first-child,th:first-child{text-align:left}"
    "td.text{text-align:left;font:13px ui-monospace,monospace;overflow-wrap:anywhere}"
    ".passed{color:#0a7a33}.failed{color:#b00020}"
)


def page(report: ParityReport, *, model: str = "") -> str:
    """The report as a page of HTML that needs no other file.

    Args:
        model: name of the model, for the title.
    """
    verdict = "passed" if report.passed else "failed"
    title = f"Parity of {html.escape(model or 'a model')} as {html.escape(report.format)}"
    tolerance = report.tolerance
    parts = [
        f'<h1>{title}</h1><p class="{verdict}"><strong>{verdict}</strong>: {html.escape(report.summary)}</p>',
        f"<p>Tolerance of a number: {tolerance.rtol:g} * |native| + {tolerance.atol:g} * scale; labels must "
        f"agree on {tolerance.agreement:.2%} of the rows.</p>",
        *(f"<p>{html.escape(note)}</p>" for note in report.notes),
        "<h2>Compared rows</h2>",
        _table(
            ("rows", "number", "refused natively", "max difference", "mean difference", "beyond tolerance",
             "label agreement", "metric: native → served", "result"),
            [_dataset(item) for item in report.datasets],
        ),
    ]  # fmt: skip
    if report.worst:
        parts += [
            "<h2>Worst rows</h2>",
            _table(("rows", "row", "native", "served", "difference", "values"), _worst(report)),
        ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"{''.join(parts)}</html>\n"
    )


def _dataset(item: DatasetParity) -> list[str]:
    metric = ""
    if item.metric and item.native_metric is not None and item.served_metric is not None:
        metric = f"{item.metric}: {item.native_metric:.4f} → {item.served_metric:.4f}"
    result = "passed" if item.passed else "differs" if item.gating else "differs, not gating"
    return [
        item.name,
        str(item.rows),
        str(item.refused),
        _number(item.max_abs_diff),
        _number(item.mean_abs_diff),
        f"{item.beyond:.2%}",
        "" if item.label_agreement is None else f"{item.label_agreement:.2%}",
        metric,
        item.error or result,
    ]


def _worst(report: ParityReport) -> Iterable[list[str]]:
    for row in report.worst:
        yield [
            row.dataset,
            str(row.row),
            _json(row.native),
            _json(row.served),
            _number(row.abs_diff),
            _json(row.values),
        ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def _json(value: Any) -> str:
    text = json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= 2000 else f"{text[:2000]} ..."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(cell)}>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _kind(cell: str) -> str:
    return ' class="text"' if cell[:1] in "{[" and cell else ""
