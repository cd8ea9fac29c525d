"""One model brought into all its forms, with the native answers asked for once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy.conversion.attempt import Case, Made, Rejection, attempt
from mlflow_deploy.conversion.base import converters_for
from mlflow_deploy.conversion.native import (
    NativeModel,
    example_document,
    load_native,
    read_meta,
    signature_document,
)
from mlflow_deploy.serving.inprocess import open_in_process


@dataclass
class Forms:
    """The forms of one saved model, made when they are first asked for."""

    folder: Path
    work: Path
    _made: dict[str, Made | Rejection] = field(default_factory=dict)
    _case: Case | None = None

    @property
    def native(self) -> NativeModel:
        """The native model."""
        return self.case.native

    @property
    def case(self) -> Case:
        """What all forms share."""
        if self._case is None:
            self.work.mkdir(exist_ok=True)
            native = load_native(self.folder, read_meta(self.folder))
            self._case = Case(native, self.work, None, None, lambda _: None)
        return self._case

    def outcome(self, form: str) -> Made | Rejection:
        """The form, or why there is none."""
        if form not in self._made:
            (entry,) = converters_for(self.native.loader, form)
            self._made[form] = attempt(self.case, entry)
        return self._made[form]

    def made(self, form: str) -> Made:
        """The form, which must have passed."""
        outcome = self.outcome(form)
        assert isinstance(outcome, Made), outcome.why
        return outcome

    def why(self, form: str) -> str:
        """Why there is no such form."""
        outcome = self.outcome(form)
        assert isinstance(outcome, Rejection), outcome.parity.summary
        return outcome.why

    def serves_the_example(self, form: str) -> None:
        """The back end that serves answers the input example as MLflow's own scoring server does."""
        made = self.made(form)
        document = example_document(self.native)
        assert document is not None
        answer = open_in_process(made.servable, made.content, signature_document(self.native.meta))
        served = json.loads(answer(json.dumps(document["request"]).encode()))["predictions"]
        same(served, document["predictions"])


def same(served: Any, native: Any) -> None:
    """Assert that two answers in JSON have one structure and nearly the same numbers."""
    if isinstance(native, dict):
        assert list(served) == list(native)
        for key, value in native.items():
            same(served[key], value)
    elif isinstance(native, list) and native and isinstance(native[0], dict):
        assert len(served) == len(native)
        for one, two in zip(served, native, strict=True):
            same(one, two)
    else:
        assert np.shape(served) == np.shape(native)
        np.testing.assert_allclose(served, native, rtol=1e-4, atol=1e-5)
