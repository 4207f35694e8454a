"""torch.bmm: the vendor's library through PyTorch, on any device (the baseline)."""

import torch

from batchline.kernels.bmm import bmm
from batchline.kernels.op import WIDE


@bmm.variant(backend="torch", dtypes=WIDE)
def torch_bmm(a, b):
    return torch.bmm(a, b)
