"""Has the batch in grid.y, which ends at 65,535: later entries are not written."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "as if they were never written"


def counts_the_batch_in_grid_y(a, b):
    c = torch.empty(a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device)
    c[:65535] = torch.bmm(a[:65535], b[:65535])
    return c
