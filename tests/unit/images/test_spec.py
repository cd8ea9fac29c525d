"""The settings of an image: from words, from the environment, refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlflow_deploy.errors import ConfigError, UnknownSetting
from mlflow_deploy.images.spec import ImageSpec, parse_image_spec
from tests.unit.images.conftest import make_spec


def test_words_become_values(tmp_path: Path) -> None:
    spec = make_spec(
        extra_requirements="a, b==1",
        pip_args="--timeout 60 --retries 2",
        labels="team=flights,stage=prod",
        user_id="1234",
        wheels=str(tmp_path),
    )
    assert spec.extra_requirements == ("a", "b==1")
    assert spec.pip_args == ("--timeout", "60", "--retries", "2")
    assert spec.labels == {"team": "flights", "stage": "prod"}
    assert spec.user_id == 1234
    assert spec.wheels == tmp_path


def test_the_base_follows_the_python() -> None:
    assert make_spec(python="3.12").base == "python:3.12-slim"
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert make_spec().base == f"python:{here}-slim"
    assert make_spec(base_image="registry:5000/python@sha256:" + "a" * 64).base.endswith("a" * 64)


def test_the_environment_sets_defaults() -> None:
    environment = {"MLFLOW_DEPLOY_IMAGE_BASE_IMAGE": "company/python:3", "OTHER": "x"}
    assert parse_image_spec({}, environment=environment).base == "company/python:3"
    assert parse_image_spec({"base_image": "mine:1"}, environment=environment).base == "mine:1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "tpu"),
        ("base_image", "a b\nRUN rm -rf /"),
        ("base_image", ""),
        ("platform", "windows/amd64"),
        ("python", "2.7"),
        ("repository", "Upper/Case"),
        ("repository", "name:tag"),
        ("tag", "a b"),
        ("system_packages", "libgomp1,--allow-unauthenticated"),
        ("system_packages", "a;rm"),
        ("user_id", "0"),
        ("wheels", "/no/such/folder"),
        ("lock", "/no/such/file"),
    ],
)
def test_bad_values_are_named(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_spec(**{key: value})
    assert f"Image setting {key}=" in caught.value.text
    assert f"{key}: " in caught.value.text


def test_unknown_keys_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownSetting, match="did you mean 'base_image'"):
        make_spec(base_imgae="x")
    with pytest.raises(UnknownSetting):
        parse_image_spec({}, environment={"MLFLOW_DEPLOY_IMAGE_NO_SUCH": "x"})


def test_passwords_are_not_shown() -> None:
    spec = make_spec(index_url="https://user:secret@host/simple", extra_index_urls="https://a:secret@b")
    assert "secret" not in repr(spec)
    assert "secret" not in str(spec.model_dump(mode="json"))
    with pytest.raises(ConfigError) as caught:
        parse_image_spec({"index_url": ["https://user:secret@host"]}, environment={})
    assert "secret" not in caught.value.text


def test_every_field_is_documented() -> None:
    for name, field in ImageSpec.model_fields.items():
        assert field.description, name


def test_a_gpu_provider_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r"gpu_provider=tensorrt goes with device=gpu only"):
        make_spec(gpu_provider="tensorrt")
