"""A version is promoted, deployed and told of; what may not go there changes nothing, and says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mlflow
import pytest
import requests
from click.testing import CliRunner

from mlflow_deploy.cli import group
from mlflow_deploy.lifecycle.policy import ModelPolicy, Policy, StagePolicy
from mlflow_deploy.lifecycle.policy_source import TAG
from mlflow_deploy.lifecycle.promote import promote
from mlflow_deploy.targets import open_target
from mlflow_deploy.targets.base_records import DeploymentRecord
from tests.e2e.load import failed, load
from tests.integration.lifecycle.conftest import NAME, Shop

pytestmark = pytest.mark.slow

DEPLOYMENT = "shop-churn"


def quiet(_line: str) -> None:
    """Show no progress."""


def cli(*arguments: str, code: int = 0) -> str:
    """Run a command and check its exit status."""
    done = CliRunner().invoke(group, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def record() -> DeploymentRecord:
    return open_target("local").require(DEPLOYMENT)


def version_of(shop: Shop, what: str) -> Any:
    return mlflow.MlflowClient().get_model_version(NAME, shop.versions[what])


def champion() -> str:
    return str(mlflow.MlflowClient().get_registered_model(NAME).aliases.get("champion", ""))


@pytest.fixture(scope="module")
def first(shop: Shop) -> Any:
    """Version `first` in Production, promoted from the terminal; the promotion as JSON."""
    mlflow.MlflowClient().update_model_version(NAME, shop.versions["first"], "Trained by *hand*.")
    number = shop.versions["first"]
    refused = json.loads(cli("promote", NAME, number, "--to", "Production", "--json", code=1))
    assert refused["outcome"] == "refused"
    assert [each["name"] for each in refused["gates"]["results"] if not each["ok"]] == ["approval"]
    assert open_target("local").names() == []
    cli("approve", NAME, number, "--stage", "production", "--comment", "good numbers")
    return json.loads(cli("promote", NAME, number, "--to", "production", "--json"))


def test_the_first_version_is_deployed_and_told_of(shop: Shop, first: dict[str, Any]) -> None:
    assert (first["outcome"], first["plan"]["action"]) == ("promoted", "create")
    assert {each["outcome"] for each in first["gates"]["results"]} == {"passed"}
    assert record().stable.bundle == first["gates"]["bundle"], "what was checked is what is deployed"
    found = version_of(shop, "first")
    assert (found.current_stage, champion()) == ("Production", shop.versions["first"])
    assert found.description.startswith("Trained by *hand*.\n\n<!-- mlflow-deploy:Production -->")
    assert "deployed as revision 1 of shop-churn" in found.description
    assert found.tags["deploy.outcome.Production"] == "promoted"
    assert found.tags["deploy.url.Production"] == first["deployment"]["url"]
    evidence = mlflow.artifacts.load_dict(found.tags["deploy.evidence.Production"])
    assert evidence["results"] == first["gates"]["results"]
    again = promote(NAME, "@champion", "Production", progress=quiet)
    assert (again.outcome, again.plan.action, again.plan.registry) == ("promoted", "none", ())
    assert len(record().revisions) == 1


REFUSED = {
    "worse": ("champion", "worse by more than 0.02"),
    "hostile": ("security", "pickle-global"),
    "broken signature": ("signature", "input 'x10' is new and required"),
    "too slow": ("latency", "too slow: p50"),
    "not approved": ("approval", "0 of 1 approvals of ada, bob; the approval of eve does not count"),
}


def test_what_may_not_go_there_changes_nothing_and_says_why(shop: Shop, first: dict[str, Any]) -> None:
    client = mlflow.MlflowClient()
    for what in REFUSED:
        who = "eve" if what == "not approved" else "bob"
        client.set_model_version_tag(NAME, shop.versions[what], "deploy.approval.Production", who)
    before = record()
    example = json.loads((shop.home / "bundles" / before.stable.bundle / "example.json").read_bytes())
    answers: list[Any] = []
    with load(first["deployment"]["url"], example["request"], rate=30, clients=2, answers=answers) as seen:
        for what, (gate, told) in REFUSED.items():
            found = promote(NAME, shop.versions[what], "Production", progress=quiet)
            assert found.outcome == "refused", what
            assert gate in {each.name for each in found.gates.failures}, found.reason  # type: ignore[union-attr]
            if what != "hostile":
                assert {each.name for each in found.gates.failures} == {gate}, found.reason  # type: ignore[union-attr]
            assert told in found.reason
            page = version_of(shop, what)
            assert page.current_stage == "None"
            assert page.tags["deploy.outcome.Production"] == "refused"
            assert told in page.tags["deploy.reason.Production"]
            assert "### Production: refused, nothing was deployed" in page.description
            assert f"| {gate} | failed |" in page.description
            (status,) = json.loads(cli("status", DEPLOYMENT, "--json"))
            assert (status["status"], status["revision"], status["last_update"]) == (
                "ready",
                1,
                "rolled_back",
            )
            assert f"version {shop.versions[what]} was refused for Production: " in status["detail"]
            assert gate in status["detail"]
    assert not failed(seen)
    assert len(answers) > 50
    assert all(answer == example["predictions"] for answer in answers)
    after = record()
    assert (after.revisions, after.weights) == (before.revisions, before.weights)
    assert champion() == shop.versions["first"]
    assert not shop.trap.exists()


def test_a_dry_run_changes_nothing(shop: Shop, first: dict[str, Any]) -> None:
    before, page = record(), version_of(shop, "not approved")
    told = cli("promote", NAME, shop.versions["not approved"], "--to", "Production", "--dry-run", code=1)
    assert "planned, nothing was changed: gate approval failed" in told
    assert "stage of version 1" in told
    assert record() == before
    assert dict(version_of(shop, "not approved").tags) == dict(page.tags)


def test_a_failure_on_the_way_is_taken_back(shop: Shop, first: dict[str, Any]) -> None:
    """MLflow refuses the alias after deployment and stage were moved."""
    policy = Policy.load(shop.policy).for_model(NAME)
    stages = tuple(
        stage.model_copy(update={"alias": "a" * 300, "gates": {}}) if stage.name == "Production" else stage
        for stage in policy.stages
    )
    broken: ModelPolicy = policy.model_copy(update={"stages": stages})
    found = promote(NAME, shop.versions["not approved"], "Production", policy=broken, progress=quiet)
    assert found.outcome == "failed", found
    assert "alias" in found.reason
    after = record()
    assert (after.weights, after.stable.model_version) == ({1: 100}, shop.versions["first"])
    assert version_of(shop, "not approved").current_stage == "None"
    assert version_of(shop, "first").current_stage == "Production"
    assert champion() == shop.versions["first"]
    assert version_of(shop, "not approved").tags["deploy.outcome.Production"] == "failed"
    body = json.loads((shop.home / "bundles" / after.stable.bundle / "example.json").read_bytes())["request"]
    assert (
        requests.post(f"{first['deployment']['url']}/invocations", json=body, timeout=20).status_code == 200
    )


def test_the_next_version_takes_over(shop: Shop, first: dict[str, Any]) -> None:
    number = shop.versions["not approved"]
    mlflow.MlflowClient().set_registered_model_alias(NAME, "challenger", number)
    cli("reject", NAME, number, "--stage", "Production", "--comment", "wait")
    assert promote(NAME, number, "Production", dry_run=True, progress=quiet).reason.endswith(
        "rejected it: wait"
    )
    cli("approve", NAME, number, "--stage", "Production")
    found = promote(NAME, number, "Production", progress=quiet)
    assert found.outcome == "promoted", found.reason
    assert record().stable.model_version == number
    assert record().stable.bundle == found.gates.bundle  # type: ignore[union-attr]
    assert dict(mlflow.MlflowClient().get_registered_model(NAME).aliases) == {"champion": int(number)}
    assert version_of(shop, "first").current_stage == "Archived"
    archived = promote(NAME, number, "Archived", progress=quiet)
    assert archived.outcome == "refused"
    assert archived.reason.startswith("it serves in deployment shop-churn of Production")
    assert version_of(shop, "not approved").current_stage == "Production"


def test_gates_for_pipelines(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "gates.xml"
    uri = f"models:/{NAME}/{shop.versions['first']}"
    told = json.loads(cli("gates", "run", uri, "--stage", "QA", "--json", "--junit", str(file), code=1))
    found = {each["name"]: each for each in told["results"]}
    assert {name: each["outcome"] for name, each in found.items()} == {
        "metric": "failed", "fairness": "failed", "no-friday": "failed", "broken": "failed",
    }  # fmt: skip
    assert [name for name, each in found.items() if not each["ok"]] == ["no-friday"]
    assert "log_loss is not known" in found["metric"]["summary"]
    assert "group=b" in found["fairness"]["summary"]
    groups = {each["group"]: each["value"] for each in found["fairness"]["evidence"]["groups"]}
    assert groups["b"] < 0.2 < 0.8 < groups["a"]
    assert found["broken"]["summary"] == "the gate itself broke: ZeroDivisionError: by zero"
    suite = ElementTree.fromstring(file.read_text())[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "3")
    own = Policy.load(shop.policy).for_model(NAME)
    strict = own.model_copy(update={"strict_path": True})
    stepped = promote(NAME, shop.versions["worse"], "QA", policy=strict, progress=quiet)
    assert (stepped.outcome, stepped.gates) == ("refused", None)
    assert version_of(shop, "worse").tags["deploy.reason.QA"].startswith("it has not passed Staging")
    assert "may go to Staging" in cli("gates", "run", uri, "--stage", "Staging")


def test_the_policy_can_be_a_tag_or_an_artifact(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_DEPLOY_POLICY")
    monkeypatch.chdir(tmp_path)
    client, worse = mlflow.MlflowClient(), shop.versions["worse"]
    text = "stages: [{name: Canary, alias: next, gates: [security]}]"
    client.set_registered_model_tag(NAME, TAG, text)
    try:
        found = promote(NAME, worse, "canary", progress=quiet)
        assert found.outcome == "promoted"
        assert client.get_registered_model(NAME).aliases["next"] == int(worse)
        own = "stages: [{name: Canary, gates: ['os:system']}]"
        client.set_registered_model_tag(NAME, TAG, own)
        told = CliRunner().invoke(group, ["lifecycle", "check", "--model", NAME])
        assert "could run any code here" in str(told.exception)

        run = client.get_model_version(NAME, shop.versions["first"]).run_id
        client.log_text(run, text.replace("next", "later"), "policies/lifecycle.yaml")
        client.set_registered_model_tag(NAME, TAG, f"runs:/{run}/policies/lifecycle.yaml")
        assert promote(NAME, worse, "canary", progress=quiet).outcome == "promoted"
        assert client.get_registered_model(NAME).aliases["later"] == int(worse)
        assert "later" in cli("lifecycle", "check", "--model", NAME)
        for uri, why in (
            (f"models:/{NAME}/1/MLmodel", "unknown key"),
            (f"runs:/{run}/none", "cannot be read"),
        ):
            client.set_registered_model_tag(NAME, TAG, uri)
            told = CliRunner().invoke(group, ["lifecycle", "check", "--model", NAME])
            assert why in str(told.exception)
    finally:
        client.delete_registered_model_tag(NAME, TAG)


def test_a_policy_need_not_name_its_model(shop: Shop) -> None:
    stage = StagePolicy(name="Trial", alias="trial", deployment="{model}-trial")
    found = promote(
        NAME,
        shop.versions["worse"],
        "Trial",
        policy=ModelPolicy(stages=(stage,)),
        dry_run=True,
        progress=quiet,
    )
    assert found.ok
    assert (found.plan.model, found.plan.deployment) == (NAME, f"{NAME}-trial")
    assert [each.what for each in found.plan.registry] == ["alias trial"]
