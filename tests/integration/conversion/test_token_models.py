"""Models of tokens: an index that the native model refuses is refused by every form, never answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlflow_deploy.conversion import torch_onnx
from mlflow_deploy.conversion.attempt import Made, Rejection
from mlflow_deploy.conversion.runners import open_runner
from mlflow_deploy.conversion.tensor_edges import OUTSIDE_RANGE
from tests.integration.conversion.attempts import Forms
from tests.integration.conversion.nets import save_keras, save_torch

TOKENS = np.random.default_rng(3).integers(0, 40, (24, 6))
"""Of a vocabulary of 50."""


class Bag(torch.nn.Module):
    """The mean of the embeddings of six tokens, and a decision on it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(self.table(tokens).mean(1)), dim=1)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    root = tmp_path_factory.mktemp("bag")
    return Forms(save_torch(Bag(), TOKENS, root / "model"), root / "work")


def with_token(token: int) -> dict[str, Any]:
    rows = TOKENS[:1].copy()
    rows[0, 2] = token
    return {"": rows}


@pytest.mark.parametrize("form", ["onnx", "torchscript", "torch_export"])
def test_every_form_of_pytorch_refuses_the_tokens_that_pytorch_refuses(bag: Forms, form: str) -> None:
    made = bag.made(form)
    runner = open_runner(made.servable, made.content)
    np.testing.assert_allclose(
        runner.run(with_token(49)).array, bag.native.predict(with_token(49)).array, atol=1e-6
    )
    for token in (-1, -50, 50, -(2**31), 2**31 - 1):
        with pytest.raises(Exception, match=r"index|Index|bounds"):
            bag.native.predict(with_token(token))
        with pytest.raises(Exception, match=r"index|Index|indices|bounds"):
            runner.run(with_token(token))


def test_a_graph_that_counts_negative_tokens_from_the_end_is_caught(
    bag: Forms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_onnx, "refuse_negative", lambda model: None)
    outcome = Forms(bag.folder, bag.work).outcome("onnx")
    assert isinstance(outcome, Rejection)
    assert OUTSIDE_RANGE in outcome.why
    assert "rows that the native model refuses" in outcome.why


@pytest.mark.slow
def test_forms_of_keras_agree_with_keras_on_every_token_or_are_not_made(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(1)
    layers = [keras.layers.Embedding(50, 8), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
    rows = TOKENS[:, :3].astype(np.int32)
    forms = Forms(save_keras(model, rows, tmp_path / "model"), tmp_path / "work")
    made = {
        form: outcome for form in ("onnx", "savedmodel") if isinstance(outcome := forms.outcome(form), Made)
    }
    assert "onnx" in made
    for token in (-1, -50, 49, 50, -(2**31)):
        one = {"": with_token(token)[""][:, :3].astype(np.int32)}
        answers = [answer_of(forms.native.predict, one)]
        answers += [answer_of(open_runner(each.servable, each.content).run, one) for each in made.values()]
        for other in answers[1:]:
            assert (other is None) == (answers[0] is None), (token, answers)
            if other is not None:
                np.testing.assert_allclose(other, answers[0], atol=1e-5)


def answer_of(predict: Any, rows: Any) -> Any:
    """The answer, or None when the rows are refused."""
    try:
        return predict(rows).array
    except Exception:  # noqa: BLE001 - runtimes refuse rows with exceptions of their own
        return None
