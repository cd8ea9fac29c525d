"""All forms of one model: choice by measurement, the survey, PMML, and the same digest every time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge

from mlflow_deploy import errors
from mlflow_deploy.conversion import base, make_servable, race, sklearn_onnx
from mlflow_deploy.conversion.base import Candidate, ConverterEntry
from mlflow_deploy.conversion.latency import Latency
from mlflow_deploy.conversion.survey import survey
from mlflow_deploy.serving.inprocess import open_in_process
from tests.integration.conversion.boosting_cases import gusts, lgb, xgb
from tests.integration.conversion.cases import scaled
from tests.integration.conversion.conftest import SaveModel
from tests.integration.conversion.rows import cancer, iris
from tests.integration.conversion.saving import in_two_processes, save_booster

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="PMML needs a Java runtime")

# --- choice ------------------------------------------------------------------------------------------------


class Twin:
    """The converter to ONNX under the name of another form, which is served by the same back end."""

    CAPABILITIES = sklearn_onnx.CAPABILITIES
    refuse = staticmethod(sklearn_onnx.refuse)
    hints = staticmethod(sklearn_onnx.hints)

    @staticmethod
    def candidates(native: Any, answer: Any) -> Iterator[Candidate]:
        yield from sklearn_onnx.candidates(native, answer)


@pytest.fixture
def two_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn models have two forms that pass."""
    monkeypatch.setitem(sys.modules, "twin", Twin)  # type: ignore[arg-type]
    entries = (
        ConverterEntry("mlflow.sklearn", "onnx", "mlflow_deploy.conversion.sklearn_onnx", "sklearn"),
        ConverterEntry("mlflow.sklearn", "torchscript", "twin", "sklearn"),
    )
    monkeypatch.setattr(base, "CONVERTERS", entries)


@pytest.mark.usefixtures("two_forms")
@pytest.mark.parametrize(("times", "taken"), [((100, 90), "onnx"), ((100, 50), "torchscript")])
def test_the_form_that_is_measured_to_be_faster_is_taken(
    times: tuple[int, int], taken: str, save: SaveModel, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(answering: Mapping[str, Any], rows: Any, batches: Any) -> dict[str, Latency]:
        return {
            form: Latency(dict.fromkeys(batches, time)) for form, time in zip(answering, times, strict=True)
        }

    monkeypatch.setattr(race, "measure", measured)
    inputs, answers = iris()
    folder = save(LogisticRegression(max_iter=500).fit(inputs, answers), inputs)

    made = make_servable(folder, work, opener=open_in_process)

    assert made.parity is not None
    assert made.parity.format == taken
    (other,) = {"onnx", "torchscript"} - {taken}
    assert made.rejected == {other: f"it answers like the native model, but {taken} is faster"}
    assert [path for path in work.iterdir() if path != made.content] == []
    assert set(made.latencies) == {"onnx", "torchscript"}


@pytest.mark.usefixtures("two_forms")
def test_without_a_server_the_first_form_that_passes_is_taken(save: SaveModel, work: Path) -> None:
    inputs, answers = iris()
    folder = save(LogisticRegression(max_iter=500).fit(inputs, answers), inputs)

    made = make_servable(folder, work)

    assert made.parity is not None
    assert (made.parity.format, made.rejected, made.latencies) == ("onnx", {}, {})


def test_onnx_is_measured_to_be_faster_than_pyfunc(save: SaveModel, work: Path) -> None:
    inputs, answers = cancer()
    folder = save(RandomForestClassifier(20, random_state=0).fit(inputs, answers), inputs)

    made = make_servable(folder, work, opener=open_in_process, measure_all=True)

    assert made.servable.kind == "onnx"
    assert made.latencies["onnx"].times_faster(made.latencies["pyfunc"]) > 3


def test_the_metric_of_a_classifier_of_probabilities_is_its_accuracy(save: SaveModel, work: Path) -> None:
    from mlflow_deploy.conversion import Validation

    inputs, answers = iris()
    folder = save(LogisticRegression(max_iter=500).fit(inputs, answers), inputs, "predict_proba")
    rows = Validation(inputs.assign(species=answers), "species", "test")

    made = make_servable(folder, work, validation=rows)

    assert made.parity is not None
    result = next(item for item in made.parity.datasets if item.name == "validation rows")
    assert result.metric == "accuracy"
    assert result.native_metric == result.served_metric
    assert (result.native_metric or 0) > 0.9


# --- survey ------------------------------------------------------------------------------------------------


def test_the_survey_measures_what_passes_and_says_why_the_rest_does_not(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, answers = gusts()
    folder = save_booster(xgb().fit(inputs, answers), inputs, tmp_path / "model", monkeypatch)

    reports = {item.format: item for item in survey(folder, work, opener=open_in_process)}

    onnx, pyfunc, tflite = reports["onnx"], reports["pyfunc"], reports["tflite"]
    assert (onnx.ok, onnx.label_agreement) == (True, 1.0)
    assert onnx.max_abs_diff is not None
    assert onnx.latency is not None
    assert pyfunc.latency is not None
    assert onnx.latency.us[1] < pyfunc.latency.us[1]
    assert onnx.bytes
    assert not tflite.ok
    assert tflite.reason == "there is no conversion from mlflow.xgboost to tflite"
    assert list(reports)[-1] == "pyfunc"


# --- PMML --------------------------------------------------------------------------------------------------


@needs_java
@pytest.mark.slow
def test_pmml_in_a_process_of_its_own() -> None:
    """The tests in pmml_cases.py: a Java machine takes over signals of its process, and never ends in it."""
    cases = Path(__file__).with_name("pmml_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def test_pmml_is_made_on_request_only(save: SaveModel, work: Path) -> None:
    inputs, answers = iris()
    folder = save(LogisticRegression(max_iter=500).fit(inputs, answers), inputs)
    assert "pmml" not in make_servable(folder, work).rejected
    assert [entry.form for entry in base.converters_for("mlflow.sklearn")] == ["onnx"]


def test_without_java_pmml_names_the_way_out(
    save: SaveModel, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, answers = iris()
    folder = save(LogisticRegression(max_iter=500).fit(inputs, answers), inputs)
    monkeypatch.setenv("PATH", str(work))

    with pytest.raises(errors.UnsupportedConversion, match="install a Java runtime"):
        make_servable(folder, work, format="pmml")


# --- the same model gives the same files ----------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from mlflow_deploy.bundle import folder_digest
from mlflow_deploy.conversion import make_servable
for number, model in enumerate(sys.argv[2:]):
    work = Path(f"{sys.argv[1]}-{number}")
    work.mkdir()
    form = "pmml" if Path(model).name == "pmml" else "onnx"
    print("DIGEST", folder_digest(make_servable(Path(model), work, format=form).content))
"""


@pytest.mark.slow
def test_the_same_model_gives_the_same_files_in_every_process(
    save: SaveModel, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, answers = gusts()
    folders = [
        save_booster(make(n_estimators=5).fit(inputs, answers), inputs, tmp_path / name, monkeypatch)
        for name, make in (("xgboost", xgb), ("lightgbm", lgb))
    ]
    if shutil.which("java"):
        full = inputs.fillna(0.0)
        folders.append(save(scaled(Ridge()).fit(full, answers), full).rename(tmp_path / "pmml"))

    printed = in_two_processes(SCRIPT, work, *folders)

    digests = [[line for line in text.splitlines() if line.startswith("DIGEST sha256-")] for text in printed]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == len(folders)


def test_a_frame_keeps_its_own_index_out_of_the_rows() -> None:
    from mlflow_deploy.conversion.rows import take

    frame = pd.DataFrame({"x": [1, 2, 3]}, index=[7, 8, 9])
    assert take(frame, [2, 0]).index.tolist() == [0, 1]
