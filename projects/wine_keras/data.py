"""scikit-learn's wines: 178 real wines of three growers with 13 measured properties, read from the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

LABEL = "grower"


@dataclass(frozen=True)
class Wines:
    """Properties [rows, 13] and growers [rows], for training and for validation."""

    names: tuple[str, ...]
    train: np.ndarray
    train_labels: np.ndarray
    validation: np.ndarray
    validation_labels: np.ndarray

    def table(self) -> pd.DataFrame:
        """The validation rows: 13 properties and the grower."""
        return pd.DataFrame(self.validation, columns=list(self.names)).assign(
            **{LABEL: self.validation_labels}
        )


def load(share: float = 0.3) -> Wines:
    """The wines, split in the same way each time.

    Args:
        share: of the wines that are kept for validation.
    """
    found = load_wine()
    train, validation, train_labels, validation_labels = train_test_split(
        found.data.astype(np.float32), found.target, test_size=share, random_state=0, stratify=found.target
    )
    return Wines(tuple(found.feature_names), train, train_labels, validation, validation_labels)
