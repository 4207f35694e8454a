"""Opacus' ghost norms, as its fast gradient clipping takes them: two einsum Grams,
clamped at zero, and a square root.

A peer, called as its hooks call it: compute_linear_norm_sample on the layer's inputs
and output gradients (without the token dimension where there is one token). Its norms
are squared here, and ḡ is one product. In a narrow type its Grams would be rounded to
that type, so it is asked for fp32 and fp64 alone; its clamp hides a sum that came out
negative. It gives no d.
"""

import functools

import torch

from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._bounds import ghost_tolerance
from batchline.kernels.wgrad_stats._products import mean_gradient


@functools.lru_cache(maxsize=1)
def _layer(inputs, outputs):
    """What Opacus finds the weight by; its values are never read."""
    return torch.nn.utils.skip_init(
        torch.nn.Linear, inputs, outputs, bias=False, device="meta"
    )


@wgrad_stats.variant(
    backend="opacus", dtypes=("float32", "float64"), gives=2, tolerance=ghost_tolerance
)
def opacus_ghost(x, dy):
    from opacus.grad_sample.linear import compute_linear_norm_sample

    layer = _layer(x.shape[2], dy.shape[2])
    x_or_rows, dy_or_rows = (x[:, 0], dy[:, 0]) if x.shape[1] == 1 else (x, dy)
    norms = compute_linear_norm_sample(layer, [x_or_rows], dy_or_rows)
    return mean_gradient(x, dy), norms[layer.weight].square()
