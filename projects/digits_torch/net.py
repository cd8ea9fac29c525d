"""The networks of digits-torch: a convolutional teacher and a small student, both answering with logits."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """Two convolutions with normalisation, then two dense layers.

    Args:
        channels: of the first convolution; the second one has twice as many.
        hidden: neurons of the first dense layer.
    """

    def __init__(self, channels: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(2 * channels * 16, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [rows, 10] of images [rows, 1, 8, 8]."""
        return self.classifier(self.features(images))
