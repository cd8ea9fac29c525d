"""Keras and TensorFlow models serve in every form as MLflow serves them, or say why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_deploy.bundle import folder_digest
from mlflow_deploy.conversion import limits, make_servable
from tests.integration.conversion.attempts import Forms
from tests.integration.conversion.nets import keras_model, numbers, save_keras

FORMS = ("onnx", "tflite", "savedmodel")
ARCHITECTURES = ("MLP", "CNN", "several inputs", "LSTM")


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Forms]:
    root = tmp_path_factory.mktemp("keras")
    return {
        name: Forms(save_keras(*keras_model(name), root / str(index)), root / f"work{index}")
        for index, name in enumerate(ARCHITECTURES)
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_serves_in_every_form(name: str, form: str, forms: dict[str, Forms]) -> None:
    made = forms[name].made(form)

    assert made.parity.passed
    assert sum(item.rows for item in made.parity.datasets) > 1000
    assert made.servable.kind == form
    row_by_row = (name, form) == ("LSTM", "tflite")
    assert made.servable.batchable is not row_by_row
    assert ("row by row" in made.parity.variant) is row_by_row
    limited = "finite numbers only" in made.parity.variant
    assert (limits.NOTE in made.parity.notes) is limited
    # TensorFlow's pooling drops NaN, so the native network answers it, and the other runtimes answer otherwise.
    # On processors with AVX-512 its dense layers drop NaN for some numbers of rows, in its own SavedModel too.
    if (name, form) in (("CNN", "onnx"), ("CNN", "tflite")):
        assert limited
    elif limited:
        assert _drops_missing_values(forms[name])
    forms[name].serves_the_example(form)


def _drops_missing_values(forms: Forms) -> bool:
    """Whether the native network answers a number for a row with a missing value."""
    references = forms.case.evidence(forms.native).references
    (missing,) = [each for each in references if each.dataset.name == "missing values"]
    return any(np.isfinite(array).any() for array in missing.answers.arrays.values())


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_in_every_process(
    forms: dict[str, Forms], tmp_path: Path
) -> None:
    script = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "import tensorflow as tf\n"
        "for _ in range(9):\n"
        "    tf.function(lambda x: x + 1).get_concrete_function(tf.TensorSpec((None,)))\n"
        "from mlflow_deploy.bundle import folder_digest\n"
        "from mlflow_deploy.conversion.answers import as_answer\n"
        "from mlflow_deploy.conversion.base import CONVERTERS, load_converter\n"
        "from mlflow_deploy.conversion.native import load_native, read_meta\n"
        "from mlflow_deploy.conversion import networks\n"
        "model, work = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "native = load_native(model, read_meta(model))\n"
        "answer = native.predict(networks.samples(native))\n"
        "for form in sys.argv[3:]:\n"
        "    entry = [e for e in CONVERTERS if (e.loader, e.form) == (native.loader, form)][0]\n"
        "    for number, candidate in enumerate(load_converter(entry).candidates(native, answer)):\n"
        "        place = work / f'{form}-{number}'\n"
        "        place.mkdir()\n"
        "        try:\n"
        "            candidate.build(place)\n"
        "        except NotImplementedError:\n"
        "            continue\n"
        "        print('DIGEST', form, folder_digest(place))\n"
        "        break\n"
    )
    # The loop of the LSTM is where TensorFlow's own names differ from process to process.
    command = [sys.executable, "-c", script, str(forms["LSTM"].folder), str(tmp_path), *reversed(FORMS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("DIGEST")]
    assert dict(found) == {form: folder_digest(forms["LSTM"].made(form).content) for form in FORMS}


def test_an_unrolled_recurrent_layer_serves_any_number_of_rows_in_tflite(tmp_path: Path) -> None:
    model, rows = keras_model("LSTM unrolled")
    forms = Forms(save_keras(model, rows, tmp_path / "model", "keras"), tmp_path / "work")

    assert forms.made("tflite").servable.batchable
    assert forms.made("tflite").parity.variant == "float32"


def test_models_of_the_keras_flavor_and_exported_ones_serve(tmp_path: Path) -> None:
    model, rows = keras_model("MLP")
    exported = Forms(
        save_keras(model, rows, tmp_path / "exported", "keras", save_exported_model=True), tmp_path / "work"
    )

    for form in FORMS:
        exported.serves_the_example(form)


def test_full_int8_tflite_answers_within_its_stated_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras
    import pandas as pd
    from ai_edge_litert.interpreter import Interpreter
    from keras import layers
    from sklearn.datasets import load_digits

    from mlflow_deploy.conversion import Validation, precision_tflite

    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(pixels[:1200], digits[:1200], epochs=6, batch_size=64, verbose=0)
    folder = save_keras(model, pixels[1200:1264], tmp_path / "model")
    frame = pd.DataFrame(pixels[1200:]).rename(columns=str).assign(label=digits[1200:])
    every = precision_tflite.candidates
    # The dynamic form may be faster on this machine, and is no proof of the full one.
    monkeypatch.setattr(
        precision_tflite,
        "candidates",
        lambda *given: (each for each in every(*given) if each.label == "int8 full"),
    )
    work = tmp_path / "work"
    work.mkdir()

    made = make_servable(
        folder, work, format="tflite", precision="int8", validation=Validation(frame, "label", "digits")
    )

    assert made.parity is not None
    assert made.parity.passed
    assert "int8 full" in made.parity.variant
    assert (made.parity.tolerance.atol, made.parity.tolerance.agreement) == (0.1, 0.98)
    rows = {item.name: item for item in made.parity.datasets}
    result = rows["validation rows"]
    print(result)
    assert result.rows == 597
    assert result.label_agreement is not None
    assert result.label_agreement >= 0.98
    assert result.metric == "accuracy"
    assert (result.served_metric or 0) > (result.native_metric or 1) - 0.01
    assert (result.native_metric or 0) > 0.8
    # Not only the weights: between the first and the last tensor nothing is computed in floats.
    details = Interpreter(model_path=str(made.content / "model.tflite")).get_tensor_details()
    floats = [item["name"] for item in details if item["dtype"] is np.float32]
    assert len(floats) == 2, floats


def test_a_module_of_tensorflow_serves(tmp_path: Path) -> None:
    import tensorflow as tf

    class Softmax(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(numbers(6, 3))

        @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32)])
        def __call__(self, x: Any) -> Any:
            return tf.nn.softmax(tf.nn.relu(x) @ self.weights)

    forms = Forms(save_keras(Softmax(), numbers(6, 6), tmp_path / "model"), tmp_path / "work")

    for form in FORMS:
        forms.serves_the_example(form)


def test_what_has_no_graph_is_named_with_the_way_out(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf
    from keras import layers

    source = keras.Input((4,))
    listed = keras.Model(source, [layers.Dense(1)(source), layers.Dense(2)(source)])
    several = Forms(_save_listed(listed, numbers(4, 4), tmp_path / "listed"), tmp_path / "work1")
    assert 'keras.Model(inputs, {"first": first, "second": second})' in several.why("onnx")

    class Lookup(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            keys = tf.lookup.KeyValueTensorInitializer(tf.constant([1, 2], tf.int64), tf.constant([1.0, 2.0]))
            self.table = tf.lookup.StaticHashTable(keys, 0.0)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64)])
        def __call__(self, x: Any) -> Any:
            return self.table.lookup(x)

    import numpy as np

    rows = np.array([1, 2, 3], dtype=np.int64)
    lookup = Forms(save_keras(Lookup(), rows, tmp_path / "lookup"), tmp_path / "work2")
    for form in FORMS:
        assert "use format=pyfunc" in lookup.why(form)

    class Rare(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32)])
        def __call__(self, x: Any) -> Any:
            return tf.math.igamma(tf.abs(x) + 1.0, tf.abs(x) + 1.0)

    rare = Forms(save_keras(Rare(), numbers(4, 3), tmp_path / "rare"), tmp_path / "work3")
    assert "no ONNX operator for TensorFlow's Igamma; use format=savedmodel" in rare.why("onnx")
    assert "no operator for tf.Igamma; use format=savedmodel or format=onnx" in rare.why("tflite")
    rare.serves_the_example("savedmodel")


def _save_listed(model: Any, rows: Any, folder: Path) -> Path:
    """A model with a list of outputs, for which no signature can be inferred from the answer."""
    import warnings

    import mlflow.tensorflow
    from mlflow.models import infer_signature

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.tensorflow.save_model(
            model,
            str(folder),
            signature=infer_signature(rows),
            input_example=rows,
            pip_requirements=["tensorflow-cpu"],
        )
    return folder


def test_a_logged_onnx_graph_serves_as_it_is(tmp_path: Path) -> None:
    import warnings

    import mlflow.onnx
    import onnx
    from mlflow.models import infer_signature
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
        ],
        "two outputs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2]),
        ],
        [onnx.numpy_helper.from_array(numbers(3, 2), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    rows = numbers(5, 3)
    folder = tmp_path / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.onnx.save_model(
            model,
            str(folder),
            signature=infer_signature(rows),
            input_example=rows,
            pip_requirements=["onnxruntime"],
        )
    forms = Forms(folder, tmp_path / "work")

    forms.serves_the_example("onnx")
    assert forms.made("onnx").servable.answer == "dict"
    assert [output.column for output in forms.made("onnx").servable.outputs] == ["label", "y"]
    (tmp_path / "auto").mkdir()
    assert make_servable(folder, tmp_path / "auto").servable.kind == "onnx"


def test_for_a_gpu_no_form_is_tried_that_computes_on_cpus_only(
    forms: dict[str, Forms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_deploy.conversion import attempt
    from mlflow_deploy.errors import UnsupportedConversion

    tried = []

    def refused(case: attempt.Case, entry: Any) -> attempt.Rejection:
        tried.append(entry.form)
        return attempt.Rejection("not today", UnsupportedConversion("The model", entry.form, "not today"))

    monkeypatch.setattr(attempt, "attempt", refused)
    made = make_servable(forms["MLP"].folder, tmp_path, device="gpu")
    assert "onnx" in tried
    assert "tflite" not in tried
    assert made.rejected["tflite"] == "it computes on CPUs only"
