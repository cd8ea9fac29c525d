"""The notebook from logging to promotion: its code cells run in their order in one process, as printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "projects" / "flight_delay" / "lifecycle.ipynb"

_RUN = """
import json, sys
scope = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
told = [scope[name].outcome for name in ("refused", "promoted", "followed", "again")]
record, found = scope["record"], scope["found"]
print(json.dumps({
    "outcomes": told, "reason": scope["refused"].reason, "champion": scope["champion"],
    "approvers": record.approvers, "gates": [gate["name"] for gate in record.evidence["gates"]["results"]],
    "moved": [[each.outcome, each.revision] for each in scope["report"].affected],
    "kept_out": scope["again"].reason, "problems": len(found.problems), "copies": found.copies,
    "actions": [each["action"] for each in scope["whole_history"](scope["target"], scope["DEPLOYMENT"])],
}))
"""


@pytest.mark.slow
def test_cells_run_as_printed(home: Path, tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_EXPERIMENT")},
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_REGISTRY_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_DEPLOY_RECORD_SECONDS": "60",
        "PYTHONPATH": str(NOTEBOOK.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN, NOTEBOOK],
        capture_output=True, text=True, timeout=400, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["outcomes"] == ["refused", "promoted", "promoted", "refused"]
    assert "approval" in told["reason"]
    assert told["champion"] in (2, "2")
    assert told["approvers"] == ["grace"]
    assert {"security", "signature", "smoke", "parity", "metric", "approval"} <= set(told["gates"])
    assert told["moved"] == [["moved", 1]]
    assert "quarantine" in told["kept_out"]
    assert (told["problems"], told["copies"]) == (0, len(told["actions"]))
    assert told["actions"][-1] == "delete"


def test_it_holds_no_output() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
