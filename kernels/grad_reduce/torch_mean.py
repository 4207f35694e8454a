"""torch.mean over the batch, on any device (the baseline)."""

import torch

from batchline.kernels.grad_reduce import grad_reduce


@grad_reduce.variant(backend="torch")
def torch_mean(g):
    return torch.mean(g, dim=0)
