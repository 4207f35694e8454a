"""Leaves torch more threads than the machine gives it, for the next to be slow."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it left the number of torch's threads changed"
REFUSED_BY = "timing"


def leaves_more_threads(a, b):
    torch.set_num_threads(3)
    return torch.bmm(a, b)
