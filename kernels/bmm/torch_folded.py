"""A shared right side makes it one product: the batch folds into the rows, [B·M, K] @
[K, N], by torch.mm.

It is what a linear layer does: B is read once for all entries instead of once for each,
and the tiles of short entries (M = 32 of the digits) are filled by their neighbours.
torch.matmul folds like this where the right side is [K, N]; given one that was expanded
to [B, K, N] it calls torch.bmm.
"""

import torch

from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._folding import fold, why_not_folded
from batchline.kernels.op import WIDE


def _why_not(a, b):
    if (
        a.dtype == torch.bfloat16
        and not a.is_cuda
        and a.shape[1] > 1
        and a.stride(1) != a.shape[2]
    ):
        # With AMX (PyTorch 2.13 on an Intel Xeon): what stands behind the row is
        # multiplied by 0, and NaN is left.
        return "oneDNN's bf16 product reads past the end of a padded row: a NaN there spoils the sum"
    return why_not_folded(a, b)


@bmm.variant(backend="torch", dtypes=WIDE, supports=_why_not, builds_on="torch_bmm")
def torch_folded(a, b):
    batch, m, n = a.shape[0], a.shape[1], b.shape[2]
    if batch == 0:
        return a.new_empty((0, m, n))
    return torch.mm(fold(a), b[0]).view(batch, m, n)
