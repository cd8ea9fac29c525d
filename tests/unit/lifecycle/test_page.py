"""The section of a version's description: people's own words stay, whatever is in it."""

from __future__ import annotations

from dataclasses import replace

from mlflow_deploy.lifecycle.gates.report import GateReport, GateResult
from mlflow_deploy.lifecycle.page import described
from mlflow_deploy.lifecycle.promotion import Promotion, PromotionPlan

PLAN = PromotionPlan(
    "m", "2", "models:/m/2", "Production", "local", "shop", "update", (), (), (), ("security",), ()
)
FOUND = GateResult("security", "failed", False, "<img src=x> | `os.system`\n*bold*", {}, 0.1)
REPORT = GateReport("models:/m/2", "m", "2", "Production", "2026-03-03", "", (FOUND,))
REFUSED = Promotion("refused", PLAN, "2026-03-03", "ada", reason=REPORT.reason, gates=REPORT)
DONE = Promotion(
    "promoted", PLAN, "2026-03-04", "ada", deployment={"revision": 3, "url": "http://127.0.0.1:9"}
)


def test_the_section_is_replaced_and_the_rest_stays() -> None:
    first = described("Trained on **March**.", REFUSED, "")
    assert first.startswith(
        "Trained on **March**.\n\n<!-- mlflow-deploy:Production -->\n### Production: refused"
    )
    second = described(first + "\n\nLooks odd to me.", DONE, "runs:/r/gates/a.json")
    assert "refused" not in second
    assert second.count("<!-- mlflow-deploy:Production -->") == 1
    assert second.startswith("Trained on **March**.\n\nLooks odd to me.\n\n<!--")
    assert "deployed as revision 3 of shop" in second
    assert "http://127.0.0.1:9" in second
    other = described(second, replace(REFUSED, plan=replace(PLAN, stage="Staging")), "")
    assert "### Production: deployed" in other
    assert "### Staging: refused" in other


def test_what_a_model_brings_is_text() -> None:
    text = described("", REFUSED, "")
    assert r"\<img src=x\> \| \`os.system\` \*bold\*" in text
    assert "<img" not in text.replace(r"\<img", "")


def test_a_full_description_is_not_overwritten() -> None:
    own = "x" * 4600
    assert described(own, REFUSED, "").startswith(own)
    assert len(described(own, replace(REFUSED, reason="why " * 200), "")) <= 5000
    assert described("x" * 5000, REFUSED, "") == "x" * 5000
