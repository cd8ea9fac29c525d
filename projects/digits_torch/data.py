"""scikit-learn's digits: 1,797 real handwritten digits of 8 x 8 pixels, read from the installed package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

LABEL = "label"


@dataclass(frozen=True)
class Digits:
    """Images [rows, 1, 8, 8] from 0 to 1 and their digits [rows], for training and for validation."""

    train: np.ndarray
    train_labels: np.ndarray
    validation: np.ndarray
    validation_labels: np.ndarray

    def table(self) -> pd.DataFrame:
        """The validation rows: 64 pixels and the label."""
        pixels = self.validation.reshape(len(self.validation), -1)
        return pd.DataFrame(pixels, columns=[f"pixel_{i}" for i in range(64)]).assign(
            **{LABEL: self.validation_labels}
        )


def load(share: float = 0.25) -> Digits:
    """The digits, split in the same way each time.

    Args:
        share: of the images that are kept for validation.
    """
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train, validation, train_labels, validation_labels = train_test_split(
        images, labels, test_size=share, random_state=0, stratify=labels
    )
    return Digits(train, train_labels, validation, validation_labels)
