"""torch.mean of one tensor after another, as a training loop does it (the baseline): a
launch for each.
"""

import torch

from batchline.kernels.grad_reduce_multi import grad_reduce_multi


@grad_reduce_multi.variant(backend="torch")
def torch_loop(*gs):
    return tuple(torch.mean(g, dim=0) for g in gs)
