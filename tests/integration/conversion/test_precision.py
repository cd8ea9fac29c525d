"""Lower precision from a model folder to a servable: taken when it passes, refused with the reason when not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import numpy_helper
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from mlflow_deploy.conversion import Validation, make_servable, precision_onnx
from mlflow_deploy.errors import ConfigError, ParityFailed, UnsupportedConversion
from tests.integration.conversion.conftest import SaveModel

PIXELS, DIGITS = load_digits(return_X_y=True)
PIXELS = PIXELS / 16
TRAIN, VALID = slice(0, 1300), slice(1300, None)


def fitted(sizes: tuple[int, ...], rows: Any) -> MLPClassifier:
    """A network that has seen the digits 15 times, which is enough to read most."""
    model = MLPClassifier(sizes, max_iter=15, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        return model.fit(rows, DIGITS[TRAIN])


@pytest.fixture(scope="module")
def network() -> MLPClassifier:
    """A network that reads digits."""
    return fitted((128, 64), PIXELS[TRAIN])


@pytest.fixture(scope="module")
def validation() -> Validation:
    """497 digits with their labels."""
    frame = pd.DataFrame(PIXELS[VALID]).rename(columns=str).assign(label=DIGITS[VALID])
    return Validation(frame, "label", "the digits")


def test_int8_passes_within_its_stated_tolerance(
    network: MLPClassifier, validation: Validation, save: SaveModel, work: Path
) -> None:
    folder = save(network, PIXELS[TRAIN], "predict_proba")
    made = make_servable(folder, work, format="onnx", precision="int8", validation=validation)
    assert made.servable.precision == "int8"
    assert made.parity is not None
    assert "int8" in made.parity.variant
    assert (made.parity.tolerance.beyond, made.parity.tolerance.agreement) == (0.02, 0.98)
    rows = {item.name: item for item in made.parity.datasets}
    assert rows["validation rows"].rows == 497
    assert rows["validation rows"].served_metric == pytest.approx(
        rows["validation rows"].native_metric, abs=0.02
    )
    assert not rows["outliers"].gating
    assert [path.name for path in work.iterdir() if path.is_dir()] == [made.content.name]
    stored = onnx.load(str(made.content / "model.onnx")).graph.initializer
    assert onnx.TensorProto.INT8 in {item.data_type for item in stored}


def test_labels_may_differ_in_one_row_of_fifty_not_more(
    network: MLPClassifier, validation: Validation, save: SaveModel, work: Path
) -> None:
    made = make_servable(
        save(network, PIXELS[TRAIN]), work, format="onnx", precision="int8", validation=validation
    )
    assert made.parity is not None
    agreements = [item.label_agreement for item in made.parity.datasets if item.gating and item.rows]
    assert min(agreements) >= 0.98


def test_auto_measures_all_and_says_what_it_measured(
    network: MLPClassifier, validation: Validation, save: SaveModel, work: Path
) -> None:
    folder = save(network, PIXELS[TRAIN], "predict_proba")
    made = make_servable(folder, work, format="onnx", precision="auto", validation=validation)
    (measured,) = [note for note in made.notes if note.startswith("at 1 and 64 rows")]
    said = [measured, *(note for note in made.notes if "beyond tolerance" in note or "another label" in note)]
    assert "float32" in measured
    for name in ("int8 static", "int8 static per tensor", "int8 dynamic", "fp16"):
        assert any(name in note for note in said), (name, made.notes)


def test_without_validation_rows_the_report_says_what_it_was_calibrated_on(
    network: MLPClassifier, save: SaveModel, work: Path
) -> None:
    folder = save(network, PIXELS[TRAIN], "predict_proba", input_example=PIXELS[:300])
    made = make_servable(folder, work, format="onnx", precision="int8")
    if made.parity is not None and made.parity.variant.startswith("int8 static"):
        assert any("calibrated on the input example" in note for note in made.notes)


def test_trees_have_no_int8_and_the_error_says_why(save: SaveModel, work: Path) -> None:
    forest = RandomForestClassifier(5, random_state=0).fit(PIXELS[TRAIN], DIGITS[TRAIN])
    folder = save(forest, PIXELS[TRAIN])
    for form in ("auto", "onnx"):
        with pytest.raises(UnsupportedConversion, match="no matrix product or convolution"):
            make_servable(folder, work, format=form, precision="int8")
    assert make_servable(folder, work, precision="auto").servable.precision == "fp32"


def test_a_quantiser_that_loses_a_layer_is_found_out(
    network: MLPClassifier,
    validation: Validation,
    save: SaveModel,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(path: Path, **_: Any) -> onnx.ModelProto:
        model = onnx.load(str(path))
        for item in model.graph.initializer:
            if len(item.dims) == 2:
                item.CopyFrom(numpy_helper.from_array(np.zeros(item.dims, np.float32), item.name))
                return model
        raise AssertionError

    monkeypatch.setattr(precision_onnx, "static_int8", broken)
    monkeypatch.setattr(precision_onnx, "dynamic_int8", broken)
    folder = save(network, PIXELS[TRAIN], "predict_proba")
    with pytest.raises(ParityFailed, match="beyond tolerance"):
        make_servable(folder, work, format="onnx", precision="int8", validation=validation)


def test_the_native_model_has_its_own_precision(save: SaveModel, work: Path, network: MLPClassifier) -> None:
    folder = save(network, PIXELS[TRAIN])
    with pytest.raises(ConfigError, match="format=pyfunc contradict"):
        make_servable(folder, work, format="pyfunc", precision="int8")
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        make_servable(folder, work, precision="int")


@pytest.mark.slow
def test_mlflow_deploys_int8(
    network: MLPClassifier, validation: Validation, target: Any, tracking: str
) -> None:
    import mlflow
    from mlflow.deployments import get_deploy_client

    frame = pd.DataFrame(PIXELS[TRAIN]).rename(columns=lambda name: f"p{name}")
    model = fitted((64,), frame)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model, name="net", input_example=frame[:200], pip_requirements=["scikit-learn"],
            serialization_format="cloudpickle", pyfunc_predict_fn="predict_proba",
        )  # fmt: skip
    client = get_deploy_client("local")
    made = client.create_deployment("digits-int8", info.model_uri, config={"precision": "int8"})
    assert "int8" in made["parity"]
    answers = np.asarray(client.predict("digits-int8", frame[:50])["predictions"])
    assert np.abs(answers - model.predict_proba(frame[:50])).max() < 0.2
    client.delete_deployment("digits-int8")
