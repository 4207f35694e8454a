"""Handwritten digits: scikit-learn's 1,797 images of 8x8 pixels, and a net of two
layers that tells the ten apart.
"""

import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise.workloads.workload import Samples, Workload
from batchline.kernels.digits import CLASSES, HIDDEN, PIXELS, images

_HELD_OUT, _SPLIT_SEED = 360, 0


def _model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
    )


def _losses(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return functional.cross_entropy(model(inputs), targets, reduction="none")


def _load() -> tuple[Samples, Samples]:
    x, y = images()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    held_out, train = order[:_HELD_OUT], order[_HELD_OUT:]
    return Samples(x[train], y[train]), Samples(x[held_out], y[held_out])


digits = Workload(
    "digits",
    "an MLP (64 → 128 → 10, ReLU) on scikit-learn's handwritten digits",
    _model,
    _losses,
    _load,
    batch=32,
    learning_rate=0.1,
)
