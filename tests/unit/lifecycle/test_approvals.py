"""Approvals as tags: several people, changed minds, and tags that others write."""

from __future__ import annotations

from mlflow_deploy.lifecycle.approvals import approvals_in, say

STAGE = "Production"


def test_tags_by_hand_count() -> None:
    words = approvals_in({"deploy.approval.production": "ada, bob", "deploy.approval.Staging": "eve"}, STAGE)
    assert dict(words.approved) == {"ada": "", "bob": ""}
    words = approvals_in(
        {"deploy.approval.Production": "ada", "deploy.rejection.Production.ada": "no"}, STAGE
    )
    assert (dict(words.approved), dict(words.rejected)) == ({}, {"ada": "no"})


def test_people_speak_and_change_their_minds(tracking: str) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    client.create_registered_model("approved-model")
    client.create_model_version("approved-model", "file:///nowhere")
    say("approved-model", "1", STAGE, "ada", approve=True, comment="numbers\nlook good")
    say("approved-model", "1", STAGE, "bob@example.com", approve=True)
    words = say("approved-model", "1", STAGE, "eve", approve=False, comment="too early")
    assert dict(words.approved) == {"ada": "numbers look good", "bob@example.com": ""}
    assert dict(words.rejected) == {"eve": "too early"}
    tags = client.get_model_version("approved-model", "1").tags
    assert tags["deploy.approval.Production"] == "ada,bob@example.com"
    words = say("approved-model", "1", STAGE, "ada", approve=False)
    assert (list(words.approved), sorted(words.rejected)) == (["bob@example.com"], ["ada", "eve"])
    words = say("approved-model", "1", STAGE, "eve", approve=True)
    assert (sorted(words.approved), list(words.rejected)) == (["bob@example.com", "eve"], ["ada"])
