"""Which packages an image gets, on a CPU and on a GPU."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Mapping

import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import ConfigError
from mlflow_deploy.images.errors import PythonMismatch, RequirementRefused
from mlflow_deploy.images.requirements import wanted
from tests.unit.images.conftest import make_spec

Make = Callable[[Mapping[str, str]], Bundle]


def names(lines: tuple[str, ...]) -> dict[str, str]:
    """Specifier by package name."""
    found = {}
    for line in lines:
        name = line.split("==")[0].split("<")[0].split(">")[0].split(" ")[0]
        found[name] = line.removeprefix(name)
    return found


def test_a_graph_gets_the_versions_of_the_parity_check(graph: Bundle) -> None:
    found = names(wanted(graph, make_spec()).lines)
    assert set(found) == {
        "onnxruntime", "numpy", "granian", "msgspec", "nanoarrow", "prometheus-client", "grpcio",
        "protobuf",
    }  # fmt: skip
    for name, specifier in found.items():
        assert specifier == f"=={importlib.metadata.version(name)}"


def test_a_graph_on_a_gpu(graph: Bundle) -> None:
    found = names(wanted(graph, make_spec(device="gpu")).lines)
    version = importlib.metadata.version("onnxruntime")
    assert found["onnxruntime-gpu[cuda,cudnn]"] == f"=={version}"
    assert "onnxruntime" not in found


def test_tensorrt_comes_when_it_is_asked_for(graph: Bundle) -> None:
    asked = wanted(graph, make_spec(device="gpu", gpu_provider="tensorrt")).lines
    plain = wanted(graph, make_spec(device="gpu")).lines
    assert [line for line in asked if line not in plain] == ["tensorrt-cu13-libs>=10,<11"]
    own = make_spec(device="gpu", gpu_provider="tensorrt", extra_requirements="tensorrt-cu12-libs==10.9.0.34")
    assert [line for line in wanted(graph, own).lines if "tensorrt" in line] == [
        "tensorrt-cu12-libs==10.9.0.34"
    ]


def test_a_pyfunc_model_gets_its_own_versions(make_pyfunc: Make) -> None:
    bundle = make_pyfunc({"requirements.txt": "mlflow==3.1.0\nscikit-learn==1.6.0  # why\nnumpy==2.0.1\n"})
    found = names(wanted(bundle, make_spec()).lines)
    assert found["mlflow-skinny"] == "==3.1.0"
    assert found["scikit-learn"] == "==1.6.0"
    assert found["numpy"] == "==2.0.1"
    assert {"pandas", "pyarrow", "granian", "msgspec", "prometheus-client"} <= found.keys()
    assert "mlflow" not in found
    full = names(wanted(bundle, make_spec(mlflow="full")).lines)
    assert full["mlflow"] == "==3.1.0"
    assert "mlflow-skinny" not in full


def test_mlflow_is_added_and_our_own_package_dropped(make_pyfunc: Make) -> None:
    found = names(wanted(make_pyfunc({"requirements.txt": "mlflow-deploy==0.1\n"}), make_spec()).lines)
    assert found["mlflow-skinny"] == f"=={importlib.metadata.version('mlflow-skinny')}"
    assert "mlflow-deploy" not in found


@pytest.mark.parametrize(
    ("device", "line", "expected"),
    [
        ("cpu", "tensorflow==2.20.0", "tensorflow-cpu==2.20.0"),
        ("gpu", "tensorflow==2.20.0", "tensorflow[and-cuda]==2.20.0"),
        ("gpu", "tensorflow-cpu==2.20.0", "tensorflow[and-cuda]==2.20.0"),
        ("cpu", "onnxruntime-gpu==1.23.0", "onnxruntime==1.23.0"),
        ("gpu", "torch==2.9.0+cpu", "torch==2.9.0"),
        ("cpu", "torch==2.9.0+cu126", "torch==2.9.0"),
        ("cpu", "torch==2.9.0", "torch==2.9.0"),
        ("gpu", "xgboost-cpu==3.0.0", "xgboost==3.0.0"),
        ("cpu", "pandas[parquet]>=2 ; python_version < '4'", 'pandas[parquet]>=2 ; python_version < "4"'),
    ],
)
def test_the_build_for_the_device(make_pyfunc: Make, device: str, line: str, expected: str) -> None:
    bundle = make_pyfunc({"requirements.txt": line})
    lines = wanted(bundle, make_spec(device=device, platform="linux/amd64")).lines
    assert expected.replace(" ; ", "; ") in [each.replace(" ; ", "; ") for each in lines]


def test_torch_is_told(make_pyfunc: Make) -> None:
    assert wanted(make_pyfunc({"requirements.txt": "torchvision"}), make_spec()).torch


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://evil.example/simple",
        "--extra-index-url=https://evil.example/simple",
        "-r other.txt",
        "-e .",
        "-c ../../constraints.txt",
        "pkg @ git+https://evil.example/pkg.git",
        "pkg @ file:///etc/pkg.whl",
    ],
)
def test_a_model_cannot_name_places(make_pyfunc: Make, line: str) -> None:
    with pytest.raises(RequirementRefused):
        wanted(make_pyfunc({"requirements.txt": f"numpy\n{line}\n"}), make_spec())


def test_a_line_that_is_no_requirement(make_pyfunc: Make) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        wanted(make_pyfunc({"requirements.txt": "numpy >> 1\n"}), make_spec())


def test_mlflows_constraints_are_kept(make_pyfunc: Make) -> None:
    bundle = make_pyfunc({"requirements.txt": "numpy\n-c constraints.txt\n", "constraints.txt": "scipy<2\n"})
    assert wanted(bundle, make_spec()).constraints == ("scipy<2",)


def test_conda_yaml_is_read_where_there_is_no_requirements_file(make_pyfunc: Make) -> None:
    text = "dependencies:\n- python=3.11.7\n- pip<=23.2\n- pip:\n  - scikit-learn==1.6.0\n"
    assert "scikit-learn==1.6.0" in wanted(make_pyfunc({"conda.yaml": text}), make_spec()).lines


def test_conda_packages_are_refused(make_pyfunc: Make) -> None:
    with pytest.raises(RequirementRefused, match="conda package"):
        wanted(make_pyfunc({"conda.yaml": "dependencies:\n- gdal=3\n"}), make_spec())


def test_another_python_is_refused_unless_asked_for(make_pyfunc: Make) -> None:
    bundle = make_pyfunc({"requirements.txt": "numpy\n", "python_env.yaml": "python: 3.8.10\n"})
    with pytest.raises(PythonMismatch, match=r"logged with Python 3\.8"):
        wanted(bundle, make_spec())
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert wanted(bundle, make_spec(python=here)).lines


def test_a_file_replaces_the_models_requirements(
    make_pyfunc: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("r") / "r.txt"
    path.write_text("scipy==1.15.0 \\\n  ; python_version > '3'\n")
    bundle = make_pyfunc({"requirements.txt": "pkg @ git+https://x/y\n"})
    lines = wanted(bundle, make_spec(requirements=path, extra_requirements="rich")).lines
    assert any(line.startswith("scipy==1.15.0") for line in lines)
    assert "rich" in lines
