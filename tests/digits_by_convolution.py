"""A training that is none of Batchline's own workloads: a small convolutional net with
GroupNorm on scikit-learn's handwritten digits, by AdamW.

`batchline advise --train tests/digits_by_convolution.py:make --validate` printed
reports/evidence/own-training.txt.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 32


def net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def make():
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return (
        model,
        nn.CrossEntropyLoss(),
        DataLoader(data, BATCH, shuffle=True),
        optimizer,
    )
