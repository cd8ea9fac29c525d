"""DeploymentSpec: strings from the command line become typed settings, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_deploy.config import DeploymentSpec, check_name, describe_settings, parse_spec, read_spec_file
from mlflow_deploy.errors import ConfigError, InvalidName, UnknownSetting


def test_strings_become_typed_values_and_dots_nest() -> None:
    spec = parse_spec({"port": "8080", "serving.workers": "2", "parity.rtol": "1e-3", "format": "onnx"})
    assert (spec.port, spec.serving.workers, spec.parity.rtol, spec.format) == (8080, 2, 1e-3, "onnx")


def test_nothing_given_is_a_valid_spec() -> None:
    assert parse_spec(None) == DeploymentSpec()


@pytest.mark.parametrize(
    ("key", "guess"),
    [("prot", "port"), ("serving.worker", "serving.workers"), ("parity.rtoll", "parity.rtol")],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(key: str, guess: str) -> None:
    with pytest.raises(UnknownSetting, match=f"Unknown setting '{key}': did you mean '{guess}'"):
        parse_spec({key: "1"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"port": "http"}, r"Setting port=http cannot be used"),
        ({"port": "70000"}, r"port=70000"),
        ({"format": "onx"}, r"format=onx.*'auto', 'onnx', .* or 'pyfunc'"),
        ({"serving.workers": "many"}, r"serving.workers=many.*Server processes"),
        ({"serving": "many"}, r"serving=many"),
        ({"serving": "x", "serving.workers": "1"}, r"contradicts"),
        ({"ready_seconds": "-1"}, r"ready_seconds=-1"),
    ],
)
def test_unusable_value_is_named_with_its_key(config: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec(config)


def test_flavor_is_the_format_and_must_not_contradict_it() -> None:
    assert parse_spec(None, flavor="pyfunc").format == "pyfunc"
    assert parse_spec({"format": "onnx"}, flavor="onnx").format == "onnx"
    with pytest.raises(ConfigError, match="contradict"):
        parse_spec({"format": "onnx"}, flavor="pyfunc")


def test_update_keeps_what_is_not_named() -> None:
    base = parse_spec({"port": "8080", "serving.workers": "2", "serving.log_level": "debug"})
    spec = parse_spec({"serving.workers": "3"}, base=base)
    assert (spec.port, spec.serving.workers, spec.serving.log_level) == (8080, 3, "debug")


def test_every_setting_is_documented() -> None:
    assert [row.key for row in describe_settings() if not row.doc.strip()] == []


@pytest.mark.parametrize("name", ["d1", "a", "flight-delay", "x" * 53])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


def test_replicas_of_earlier_records_are_read() -> None:
    spec = DeploymentSpec.model_validate({"docker": {"replicas": 3, "cpus": 0.5}})
    assert (spec.replicas, spec.docker.cpus) == (3, 0.5)
    assert parse_spec({"docker.cpus": "1"}, base=spec).replicas == 3
    with pytest.raises(UnknownSetting, match="did you mean 'replicas'"):
        parse_spec({"docker.replicas": "2"})


@pytest.mark.parametrize("name", ["", "a/b", "../x", "A", "-a", "a-", "a_b", "x" * 54, "a.r1", "a b", "ä"])
def test_names_that_cannot_be_folder_container_and_host_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


def test_yaml_file_gives_the_same_spec(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("port: 8080\nserving:\n  workers: 2\n")
    assert parse_spec(read_spec_file(path)) == parse_spec({"port": "8080", "serving.workers": "2"})


@pytest.mark.parametrize("text", ["[1, 2]", "{", "\x00"])
def test_broken_yaml_is_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"spec\.yaml"):
        read_spec_file(path)
