"""BackPACK's batch_l2: one einsum in a hook of the backward pass; its forward pass is
in its time and its memory.

A peer, called as its users call it: forward through an extended layer, for the hook
keeps X from there, then backward with dY as the output's gradient, which is the
gradient of the sum ⟨Y, dY⟩ and has no 1/B in it (backpack#49). The forward product is
as large as ḡ's, and a training step has made it by then. torch hands the einsum of four
to opt_einsum where that is installed, which contracts it to Grams or to gradients,
whichever takes fewer operations. It gives no d, and in a narrow type its sums would be
rounded to that type: it is asked for fp32 and fp64 alone.
"""

import functools
import warnings

import torch

from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._bounds import ghost_tolerance


@functools.lru_cache(maxsize=1)
def _layer(inputs, outputs, dtype, device):
    """A linear layer with its hooks, kept from call to call: BackPACK keeps a handle of
    every hook for good.
    """
    from backpack import extend

    warnings.filterwarnings(
        "ignore", "Full backward hook is firing"
    )  # X asks for no gradient: none is wanted
    warnings.filterwarnings("ignore", "Initializing zero-element tensors")
    return extend(
        torch.nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)
    )


@wgrad_stats.variant(
    backend="backpack",
    dtypes=("float32", "float64"),
    gives=2,
    tolerance=ghost_tolerance,
)
def backpack_batch_l2(x, dy):
    from backpack import backpack
    from backpack.extensions import BatchL2Grad

    weight = (layer := _layer(x.shape[2], dy.shape[2], x.dtype, x.device)).weight
    x_or_rows, dy_or_rows = (x[:, 0], dy[:, 0]) if x.shape[1] == 1 else (x, dy)
    y = layer(x_or_rows)
    with backpack(BatchL2Grad()):
        y.backward(dy_or_rows)
    mean, n = weight.grad.div_(len(x)), weight.batch_l2
    weight.grad = weight.batch_l2 = None
    return mean, n
