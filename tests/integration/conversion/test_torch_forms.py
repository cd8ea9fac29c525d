"""PyTorch models of four architectures serve in every form as MLflow serves them, or say why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mlflow_deploy.bundle import folder_digest
from mlflow_deploy.conversion import make_servable
from mlflow_deploy.errors import UnsupportedConversion
from tests.integration.conversion.attempts import Forms
from tests.integration.conversion.nets import Branch, Encoder, Lstm, Mlp, numbers, save_torch, torch_model

FORMS = ("onnx", "torchscript", "torch_export")


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Forms]:
    root = tmp_path_factory.mktemp("torch")
    found = {}
    for name in ("MLP", "CNN", "transformer encoder", "LSTM"):
        folder = save_torch(*torch_model(name), root / name.split()[0])
        found[name] = Forms(folder, root / f"work-{name.split()[0]}")
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["MLP", "CNN", "transformer encoder", "LSTM"])
def test_every_architecture_serves_in_every_form(name: str, form: str, forms: dict[str, Forms]) -> None:
    made = forms[name].made(form)

    assert made.parity.passed
    assert sum(item.rows for item in made.parity.datasets) > 1000
    assert made.servable.kind == form
    assert made.servable.batchable
    # A network answers NaN with NaN, which is no answer: the server refuses what would lead to it.
    assert [feed.accepts for feed in made.servable.feeds] == ["finite"]
    forms[name].serves_the_example(form)


def test_the_same_model_gives_the_same_bytes_in_every_process(
    forms: dict[str, Forms], tmp_path: Path
) -> None:
    script = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "from mlflow_deploy.bundle import folder_digest\n"
        "from mlflow_deploy.conversion import make_servable\n"
        "for form in sys.argv[3:]:\n"
        "    made = make_servable(Path(sys.argv[1]), Path(sys.argv[2]), format=form)\n"
        "    print(form, folder_digest(made.content))\n"
    )
    command = [sys.executable, "-c", script, str(forms["MLP"].folder), str(tmp_path), *reversed(FORMS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True)

    digests = dict(line.split() for line in done.stdout.splitlines())
    assert digests == {form: folder_digest(forms["MLP"].made(form).content) for form in FORMS}


def test_an_exported_program_serves_as_onnx_and_itself(tmp_path: Path) -> None:
    forms = Forms(save_torch(*torch_model("LSTM"), tmp_path / "model", format="pt2"), tmp_path / "work")

    for form in ("onnx", "torch_export"):
        forms.serves_the_example(form)
    assert "log it with serialization_format='pickle'" in forms.why("torchscript")


def test_columns_of_a_frame_are_answered_as_a_frame(tmp_path: Path) -> None:
    torch.manual_seed(1)
    rows = pd.DataFrame(numbers(6, 6).astype(float), columns=list("abcdef"))
    forms = Forms(save_torch(Mlp(), rows, tmp_path / "model"), tmp_path / "work")

    for form in FORMS:
        assert forms.made(form).servable.answer == "columns"
        assert [output.column for output in forms.made(form).servable.outputs] == ["0", "1", "2"]
        forms.serves_the_example(form)


def test_a_network_whose_first_dimension_is_time_is_never_batched(tmp_path: Path) -> None:
    torch.manual_seed(1)
    folder = save_torch(Lstm(batch_first=False), numbers(6, 1, 4), tmp_path / "model")
    forms = Forms(folder, tmp_path / "work")

    assert not forms.made("torchscript").servable.batchable
    forms.serves_the_example("torchscript")


def test_a_free_second_dimension_stays_free_or_the_form_is_refused(tmp_path: Path) -> None:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    torch.manual_seed(1)
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, 2))])
    for make, width, shown, refused in (
        (Encoder, 8, ("onnx", "torch_export"), ()),
        (Lstm, 4, ("torchscript",), ("onnx", "torch_export")),
    ):
        inputs = Schema([TensorSpec(np.dtype(np.float32), (-1, -1, width))])
        signature = ModelSignature(inputs=inputs, outputs=outputs)
        folder = save_torch(make(), numbers(6, 4, width), tmp_path / f"model{width}", signature=signature)
        forms = Forms(folder, tmp_path / f"work{width}")
        for form in shown:
            datasets = {item.name: item for item in forms.made(form).parity.datasets}
            assert datasets["half the size of dimension 1"].passed
            forms.serves_the_example(form)
        for form in refused:
            assert "the length of sequences in LSTM and GRU" in forms.why(form)
            assert "format=torchscript" in forms.why(form)


def test_a_decision_on_values_is_scripted_and_refused_where_it_would_be_traced(tmp_path: Path) -> None:
    torch.manual_seed(1)
    forms = Forms(save_torch(Branch(), numbers(6, 3), tmp_path / "model"), tmp_path / "work")

    # Its answer depends on all rows of the request, so rows of several may not be computed together.
    assert not forms.made("torchscript").servable.batchable
    assert forms.made("torchscript").parity.variant == "scripted"
    forms.serves_the_example("torchscript")
    for form in ("onnx", "torch_export"):
        assert "decides on values of tensors" in forms.why(form)
        assert "format=torchscript" in forms.why(form)


def test_training_mode_is_named(tmp_path: Path) -> None:
    torch.manual_seed(1)
    # An exported program keeps the mode that the model had.
    folder = save_torch(Mlp(), numbers(6, 6), tmp_path / "model", format="pt2", train=True)
    forms = Forms(folder, tmp_path / "work")

    assert "dropout in training mode" in forms.why("onnx")
    assert "call eval()" in forms.why("onnx")


def test_an_example_of_one_row_is_named_where_it_fixed_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(1)
    folder = save_torch(Mlp(), numbers(1, 6), tmp_path / "model", format="pt2")

    with pytest.raises(UnsupportedConversion, match="input_example of two rows or more"):
        make_servable(folder, tmp_path, format="onnx")


def test_a_scripted_module_names_what_it_cannot_become(tmp_path: Path) -> None:
    torch.manual_seed(1)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 2)).eval())
    folder = save_torch(scripted, numbers(6, 4), tmp_path / "model")
    forms = Forms(folder, tmp_path / "work")

    assert "log the torch.nn.Module itself" in forms.why("onnx")
    assert "log the torch.nn.Module itself" in forms.why("torch_export")
    forms.serves_the_example("torchscript")


def test_auto_takes_onnx(forms: dict[str, Forms], tmp_path: Path) -> None:
    assert make_servable(forms["MLP"].folder, tmp_path).servable.kind == "onnx"


def test_the_parts_of_an_encoder_that_only_training_needs_are_gone(forms: dict[str, Forms]) -> None:
    import onnx

    model = onnx.load(forms["transformer encoder"].made("onnx").content / "model.onnx")

    assert isinstance(Encoder().encoder.layers[0].dropout, nn.Dropout)
    assert not [node for node in model.graph.node if node.op_type == "Dropout"]
    assert not [node for node in model.graph.node if node.metadata_props or node.doc_string]
    assert model.ir_version <= 10
    assert {item.domain: item.version for item in model.opset_import} == {"": 18}
