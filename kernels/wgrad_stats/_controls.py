"""Ways to compute statistics of per-sample weight gradients that people write and that
lose accuracy.
"""

from __future__ import annotations

import torch

from batchline.kernels._torch.precision import tf32_products as tf32
from batchline.kernels.op import Control, Tensors


def gram_in_own_dtype(x: torch.Tensor, dy: torch.Tensor) -> Tensors:
    """Ghost norms whose two Grams are rounded to the inputs' dtype. Their products are
    summed in fp32.
    """
    n = (torch.bmm(x, x.mT).float() * torch.bmm(dy, dy.mT)).sum((1, 2))
    return dy.flatten(0, 1).float().T @ x.flatten(0, 1).float() / len(x), n


def gradients_in_own_dtype(x: torch.Tensor, dy: torch.Tensor) -> Tensors:
    """Per-sample gradients in the inputs' dtype, then the usual passes in fp32."""
    g = torch.bmm(dy.mT, x).flatten(1).float()
    mean = g.mean(0)
    return mean.view(dy.shape[2], x.shape[2]), g.square().sum(1), g @ mean


def tf32_products(x: torch.Tensor, dy: torch.Tensor) -> Tensors:
    """Per-sample gradients by tf32 tensor cores, which round the inputs to 11 bits."""
    with tf32():
        return gradients_in_own_dtype(x, dy)


CONTROLS = (
    Control(gram_in_own_dtype, dtypes=("bfloat16",), gives=2),
    Control(gradients_in_own_dtype, dtypes=("bfloat16",)),
    Control(tf32_products, dtypes=("float32",), needs="cuda"),
)
