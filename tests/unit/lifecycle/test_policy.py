"""The policy file: defaults, inheritance, short forms, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_deploy.cli import group
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.lifecycle.policy import Policy
from mlflow_deploy.lifecycle.policy_check import problems_of


def test_no_file_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_DEPLOY_POLICY", raising=False)
    policy = Policy.load()
    assert problems_of(policy) == []
    model = policy.for_model("Flight_Delay")
    found = [(each.name, each.classic_stage, each.alias, model.deployment_of(each)) for each in model.stages]
    assert found == [
        ("Staging", "Staging", "challenger", ""),
        ("Production", "Production", "champion", "flight-delay"),
        ("Archived", "Archived", "", ""),
    ]
    assert {"security", "signature", "smoke", "parity"} == set(model.stage("production").gates)


def test_a_model_takes_from_the_default_what_it_leaves_out() -> None:
    policy = Policy.parse(
        """
        datasets: {all: {path: a.parquet}}
        default: {strict_path: true, stages: [{name: QA, gates: [smoke], approvals: 2}]}
        models:
          a: {datasets: {own: {path: b.parquet, label: y}}}
          b: {strict_path: false, stages: [{name: Production, strategy: canary, monitors: [drift]}]}
        """,
        "test",
    )
    a, b = policy.for_model("a"), policy.for_model("b")
    assert (a.name, a.strict_path, list(a.stages[0].gates)) == ("a", True, ["smoke", "approval"])
    assert (a.dataset("own").label, a.dataset("all").path) == ("y", "a.parquet")
    assert (b.strict_path, b.stages[0].classic_stage, b.stages[0].alias) == (False, "Production", "champion")
    assert b.stages[0].spec().strategy == "canary"
    assert b.stages[0].spec().monitor.kinds == ("drift",)
    assert policy.for_model("c").stages == policy.default.stages


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: {a: {stagess: []}}", "'models.a.stagess': did you mean 'stages'"),
        ("default: {stages: [{name: Q, config: {strateg: canary}}]}", "did you mean 'strategy'"),
        ("default: {stages: [{name: Q, strategy: fast}]}", "strategy=fast"),
        ("default: {stages: [{name: 'a.b'}]}", "default.stages.0.name"),
        ("default: {stages: [{name: Q, alias: v1}]}", "reserves the alias 'v1'"),
        ("default: {stages: [{name: Production}, {name: Q, alias: champion}]}", "two stages have the alias"),
        ("- 1", "valid dictionary"),
        ("a: [", "no YAML"),
    ],
)
def test_mistakes_are_named(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Policy.parse(text, "test")
    assert told in caught.value.text


def test_the_check_finds_everything_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lifecycle.yaml"
    path.write_text(
        """
        default:
          stages:
            - name: Production
              target: moon
              deployment: "{model}_x"
              approvals: {needed: 3, by: [ada]}
              gates:
                smok:
                size: {max_mb: -1}
                latency: {}
                champion: {dataset: nowhere}
                fairness: {columns: [age], max_gab: 1}
                nothing.here:Gate: {}
        """
    )
    done = CliRunner().invoke(group, ["lifecycle", "check", str(path)])
    assert done.exit_code == 2
    for told in (
        "did you mean 'smoke'", "Gate size: max_mb", "give at least one of p50_ms", "no dataset 'nowhere'",
        "did you mean 'max_gap'", "'nothing.here:Gate' cannot be loaded", "no target 'moon'",
        "cannot be a deployment name", "3 approvals are needed",
    ):  # fmt: skip
        assert told in done.output, told
    assert CliRunner().invoke(group, ["lifecycle", "check", str(tmp_path / "no.yaml")]).exception is not None
