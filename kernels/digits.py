"""Real data: a small MLP on scikit-learn's handwritten digits, and what its training
step gives to the ops.

1,797 images of 8x8 pixels, 10 classes, no download. The MLP (64 → 128 → 10, ReLU,
softmax cross-entropy) is trained for three epochs of plain SGD from a fixed seed, so
that its gradients are those of a net that is learning. Needs scikit-learn.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

PIXELS, HIDDEN, CLASSES = 64, 128, 10
PARAMETERS = PIXELS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
_EPOCHS, _TRAIN_BATCH, _LEARNING_RATE = 3, 32, 0.1


@dataclass(frozen=True)
class Layers:
    """What one forward and backward pass leaves behind, one row per sample, in fp32 on the
    CPU.

    x[S,64] the pixels, h[S,128] the hidden activations, dz1[S,128] and dz2[S,10] the
    gradients of each sample's own loss (not of their mean) with respect to the two
    layers' outputs before the activation.
    """

    x: torch.Tensor
    h: torch.Tensor
    dz1: torch.Tensor
    dz2: torch.Tensor


@functools.cache
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """x[1797,64], the pixels from 0 to 1 in fp32, and y[1797], the class numbers."""
    from sklearn.datasets import (
        load_digits,
    )  # slow to import, and only real data needs it

    digits = load_digits()
    return (
        torch.from_numpy(digits.data).float() / 16,
        torch.from_numpy(digits.target).long(),
    )


@functools.cache
def _trained() -> tuple[torch.Tensor, ...]:
    """w1[128,64], b1[128], w2[10,128], b2[10] after training."""
    x, y = images()
    generator = torch.Generator().manual_seed(0)
    w1 = torch.randn(HIDDEN, PIXELS, generator=generator) * (2 / PIXELS) ** 0.5
    w2 = torch.randn(CLASSES, HIDDEN, generator=generator) * (2 / HIDDEN) ** 0.5
    weights = (w1, torch.zeros(HIDDEN), w2, torch.zeros(CLASSES))
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(_TRAIN_BATCH):
            step = backward(weights, x[rows], y[rows])
            gradients = (
                step.dz1.T @ step.x,
                step.dz1.sum(0),
                step.dz2.T @ step.h,
                step.dz2.sum(0),
            )
            for weight, gradient in zip(weights, gradients):
                weight -= _LEARNING_RATE / len(rows) * gradient
    return weights


def backward(
    weights: tuple[torch.Tensor, ...], x: torch.Tensor, y: torch.Tensor
) -> Layers:
    """Forward and backward pass of every sample on its own: x[S,64], y[S] class
    numbers.
    """
    w1, b1, w2, b2 = weights
    h = torch.relu(x @ w1.T + b1)
    dz2 = torch.softmax(h @ w2.T + b2, dim=1)
    dz2[torch.arange(len(y)), y] -= 1
    return Layers(x, h, (dz2 @ w2) * (h > 0), dz2)


def hidden_weight(dtype: torch.dtype, device: str) -> torch.Tensor:
    """The trained hidden layer's weight[128,64]."""
    if device == "meta":
        return torch.empty(HIDDEN, PIXELS, dtype=dtype, device=device)
    return _trained()[0].to(device, dtype)


def hidden_layer(
    samples: int, dtype: torch.dtype, device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden layer's inputs x[S,64] and output gradients dz1[S,128], for S images
    drawn with replacement.
    """
    if device == "meta":
        return (
            torch.empty(samples, PIXELS, dtype=dtype, device=device),
            torch.empty(samples, HIDDEN, dtype=dtype, device=device),
        )
    layers = _draw_layers(samples, seed)
    return layers.x.to(device, dtype), layers.dz1.to(device, dtype)


def per_sample_gradients(
    samples: int, dtype: torch.dtype, device: str, seed: int
) -> torch.Tensor:
    """g[S,P]: each drawn image's gradient of its own loss for all P = 9,610 parameters
    (w1, b1, w2, b2 in order).
    """
    if device == "meta":
        return torch.empty(samples, PARAMETERS, dtype=dtype, device=device)
    layers = _draw_layers(samples, seed)
    w1 = layers.dz1[:, :, None] * layers.x[:, None, :]
    w2 = layers.dz2[:, :, None] * layers.h[:, None, :]
    return torch.cat([w1.flatten(1), layers.dz1, w2.flatten(1), layers.dz2], dim=1).to(
        device, dtype
    )


def _draw_layers(samples: int, seed: int) -> Layers:
    x, y = images()
    rows = torch.randint(
        len(x), (samples,), generator=torch.Generator().manual_seed(seed)
    )
    return backward(_trained(), x[rows], y[rows])
