"""Model URIs of every kind against a real registry."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pytest

from mlflow_deploy.errors import ModelCorrupt, ModelNotFound, RegistryUnreachable
from mlflow_deploy.lifecycle.registry import fetch, resolve


@pytest.fixture(scope="module")
def version(flight_model: Any) -> Any:
    """Version 1 of flight-delay, in Production and called champion."""
    client = mlflow.MlflowClient()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        client.transition_model_version_stage("flight-delay", "1", "Production")
    client.set_registered_model_alias("flight-delay", "champion", "1")
    return client.get_model_version("flight-delay", "1")


@pytest.mark.parametrize(
    "uri",
    [
        "models:/flight-delay/1",
        "models:/flight-delay/Production",
        "models:/flight-delay/production",
        "models:/flight-delay/latest",
        "models:/flight-delay@champion",
    ],
)
def test_version_stage_and_alias_name_the_fixed_version(version: Any, uri: str) -> None:
    model = resolve(uri)
    assert (model.asked, model.uri) == (uri, "models:/flight-delay/1")
    assert (model.name, model.version, model.run_id) == ("flight-delay", "1", version.run_id)


def test_all_ways_lead_to_the_same_files(version: Any, flight_model: Any, tmp_path: Path) -> None:
    run = f"runs:/{version.run_id}/model"
    uris = ["models:/flight-delay@champion", flight_model.model_uri, run]
    sources = []
    for number, uri in enumerate(uris):
        (tmp_path / str(number)).mkdir()
        folder, source = fetch(resolve(uri), tmp_path / str(number))
        sources.append(source)
    (tmp_path / "own").mkdir()
    sources.append(fetch(resolve(str(folder)), tmp_path / "own")[1])
    sources.append(fetch(resolve(folder.as_uri()), tmp_path / "own")[1])
    assert len({source.digest for source in sources}) == 1
    assert {source.run_id for source in sources} == {version.run_id}
    assert all("sklearn" in source.flavors for source in sources)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/flight-delay/9", "version=9"),
        ("models:/flight-delay/Staging", "no version of 'flight-delay' is in stage 'Staging'.*Production"),
        ("models:/flight-delay@challenger", "alias challenger"),
        ("models:/nope/1", "nope"),
        ("models:/nope/Production", "nope"),
        ("models:/nope", "not of the form"),
        ("models:/m-00000000000000000000000000000000", "m-0000"),
        ("runs:/0123", "not of the form"),
        ("/no/such/folder", "no folder /no/such/folder"),
    ],
)
def test_what_does_not_exist_is_said_to_not_exist(version: Any, uri: str, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message):
        resolve(uri)


def test_missing_artifacts_are_not_found(version: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        fetch(resolve(f"runs:/{version.run_id}/nope"), tmp_path)


@pytest.mark.parametrize("text", [None, "", "{", "flavors: 3", "- a", "flavors: [\xff"])
def test_broken_mlmodel_file_is_a_corrupt_model(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "MLmodel").write_text(text, encoding="latin-1")
    with pytest.raises(ModelCorrupt, match="MLmodel"):
        fetch(resolve(str(tmp_path)), tmp_path)


def test_silent_server_is_reported_at_once(tracking: str) -> None:
    mlflow.set_registry_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(RegistryUnreachable, match=r"http://127\.0\.0\.1:9"):
            resolve("models:/flight-delay/1")
    finally:
        mlflow.set_registry_uri(tracking)


def test_fetching_a_local_folder_copies_nothing(version: Any, flight_model: Any, tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    folder, _ = fetch(resolve(flight_model.model_uri), tmp_path / "download")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (tmp_path / "empty").mkdir()
    path, _ = fetch(resolve(str(copy)), tmp_path / "empty")
    assert path == copy
    assert not list((tmp_path / "empty").iterdir())
