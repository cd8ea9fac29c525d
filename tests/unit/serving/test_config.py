"""Settings file: what is read and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mlflow_deploy.errors import ConfigError, UnknownSetting
from mlflow_deploy.serving.config import parse_config, read_config
from mlflow_deploy.serving.tuning import concurrency, cpu_quota, model_threads
from mlflow_deploy.settings import ServingSettings


def test_defaults_and_values() -> None:
    assert read_config(None).serving == ServingSettings()
    config = parse_config({"deployment": "a", "revision": 2, "serving": {"workers": 3, "drain_seconds": 1}})
    assert (config.deployment, config.revision, config.serving.workers) == ("a", 2, 3)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"serving": []},
        {"revision": "x"},
        {"serving": {"workers": 0}},
        {"serving": {"workers": "2"}},
        {"serving": {"drain_seconds": float("nan")}},
        {"serving": {"access_log": 2}},
        {"serving": {"log_level": "loud"}},
        {"serving": {"auth": "token"}},
        {"serving": {"auth": "basic"}},
        {"serving": {"tls_cert": "a"}},
        {"serving": {"tls_client_ca": "a"}},
    ],
)
def test_unusable_values_are_refused(document: object) -> None:
    with pytest.raises(ConfigError):
        parse_config(document)


def test_unknown_keys_are_refused_with_a_guess() -> None:
    with pytest.raises(UnknownSetting, match="did you mean 'workers'"):
        parse_config({"serving": {"wokers": 1}})
    with pytest.raises(UnknownSetting):
        parse_config({"name": "a"})


def test_every_setting_is_documented_here_and_in_the_docs() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/serving.md").read_text()
    for field in dataclasses.fields(ServingSettings):
        assert f"| `{field.name}` | {field.default!r} | {field.metadata['doc']} |" in text


def test_quota_comes_from_the_cgroup(tmp_path: Path) -> None:
    everything = cpu_quota(tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cpu_quota(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path) == everything
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000")
    assert cpu_quota(tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert cpu_quota(tmp_path) == everything


def test_concurrency_follows_threads_and_batches() -> None:
    assert model_threads(ServingSettings(threads=3)) == 3
    assert model_threads(ServingSettings(workers=1000)) == 1
    assert concurrency(ServingSettings(threads=2, max_batch_size=8)) == 16
    assert concurrency(ServingSettings(threads=2, max_concurrency=5)) == 5
