"""torch.bmm: the vendor's library through PyTorch, on any device (the baseline)."""
import torch

from kernels.bmm import bmm


@bmm.variant(backend="torch")
def torch_bmm(a, b):
    return torch.bmm(a, b)
