"""What the gates of a stage found about a version: for people, for scripts, and for CI as JUnit XML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from mlflow_deploy.lifecycle.gates.base import Outcome


@dataclass(frozen=True)
class GateResult:
    """What one gate found.

    Attributes:
        name: the gate.
        optional: whether the version may go on without it.
        summary: one sentence with the numbers behind the outcome.
        evidence: plain values that JSON can hold.
        seconds: how long it took.
        found_at: UTC time when it was found before, of exactly the same; empty when it was found now.
    """

    name: str
    outcome: Outcome
    optional: bool
    summary: str
    evidence: Mapping[str, Any]
    seconds: float
    found_at: str = ""

    @property
    def ok(self) -> bool:
        """Whether the version may go on; a check that was not made is no reason to."""
        return self.outcome == "passed" or self.optional


@dataclass(frozen=True)
class GateReport:
    """What all gates of a stage found about a version.

    Attributes:
        model_uri: the fixed version.
        model: registered model, or an empty string.
        version: its version, or an empty string.
        stage: the stage whose gates were run.
        at: UTC time, ISO 8601.
        bundle: digest of the bundle that was checked; empty when none was made.
        results: in the order in which the gates were run.
    """

    model_uri: str
    model: str
    version: str
    stage: str
    at: str
    bundle: str
    results: tuple[GateResult, ...]

    @property
    def ok(self) -> bool:
        """Whether the version may go on."""
        return all(result.ok for result in self.results)

    @property
    def failures(self) -> list[GateResult]:
        """The gates that keep the version back."""
        return [result for result in self.results if not result.ok]

    @property
    def reason(self) -> str:
        """Why the version is kept back, on one line; an empty string when it is not."""
        return "; ".join(f"gate {each.name} {each.outcome}: {each.summary}" for each in self.failures)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, `ok` included."""
        return {
            "ok": self.ok,
            "model_uri": self.model_uri,
            "model": self.model,
            "version": self.version,
            "stage": self.stage,
            "at": self.at,
            "bundle": self.bundle,
            "results": [
                {
                    "name": each.name,
                    "outcome": each.outcome,
                    "ok": each.ok,
                    "optional": each.optional,
                    "summary": each.summary,
                    "evidence": dict(each.evidence),
                    "seconds": round(each.seconds, 3),
                    "found_at": each.found_at,
                }
                for each in self.results
            ],
        }

    def to_junit(self) -> str:
        """The report as JUnit XML: a test case per gate, so that CI systems show it like tests."""
        blocked = [each for each in self.failures if each.outcome == "failed"]
        suite = ElementTree.Element(
            "testsuite",
            name=f"gates of {self.stage}: {self.model_uri}",
            tests=str(len(self.results)),
            failures=str(len(self.failures)),
            errors="0",
            skipped=str(sum(1 for each in self.results if each.ok and each.outcome != "passed")),
            time=f"{sum(each.seconds for each in self.results):.3f}",
            timestamp=self.at,
        )
        for each in self.results:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                name=each.name,
                classname=f"{self.model or self.model_uri}.{self.stage}",
                time=f"{each.seconds:.3f}",
            )
            text = _xml_text(each.summary)
            if not each.ok:
                kind = "failed" if each in blocked else "skipped"
                ElementTree.SubElement(case, "failure", message=text, type=kind).text = text
            elif each.outcome != "passed":
                ElementTree.SubElement(case, "skipped", message=f"optional gate {each.outcome}: {text}")
            else:
                ElementTree.SubElement(case, "system-out").text = text
        suites = ElementTree.Element("testsuites")
        suites.append(suite)
        ElementTree.indent(suites)
        return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _xml_text(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(each for each in text if each in "\t\n\r" or ord(each) >= 0x20)
