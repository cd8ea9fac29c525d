"""The page of a parity report: it says what was found, and shows nothing but text."""

from __future__ import annotations

from html.parser import HTMLParser

from mlflow_deploy.conversion.report import DatasetParity, ParityReport, Tolerance, WorstRow
from mlflow_deploy.conversion.report_page import page

REPORT = ParityReport(
    format="onnx",
    variant="float32",
    tolerance=Tolerance(),
    passed=False,
    datasets=(
        DatasetParity("validation rows", 10, 1, 0.5, 0.1, 0.2, 0.8, True, False, "", "accuracy", 0.9, 0.7),
        DatasetParity("wild", 3, 0, float("inf"), 1.0, 1.0, None, False, False),
    ),
    worst=(WorstRow("validation rows", 4, {"name": "<script>alert(1)</script>"}, "a", "b", None),),
    notes=("rows were invented & so on",),
)


class Cells(HTMLParser):
    """Collects the tags and the texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_says_what_was_compared_and_shows_the_worst_rows() -> None:
    cells = Cells()
    cells.feed(page(REPORT, model="flight-delay 3"))

    assert "Parity of flight-delay 3 as onnx" in cells.texts
    assert {
        "validation rows",
        "10",
        "80.00%",
        "accuracy: 0.9000 → 0.7000",
        "differs",
        "differs, not gating",
    } <= set(cells.texts)
    assert "rows were invented & so on" in cells.texts
    assert '{"name": "<script>alert(1)</script>"}' in cells.texts
    assert "script" not in cells.tags
