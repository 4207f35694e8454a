"""torch.einsum: what many people write; shows what its parsing and reshaping cost over
torch.bmm.
"""

import torch

from batchline.kernels.bmm import bmm
from batchline.kernels.op import WIDE


@bmm.variant(backend="torch", dtypes=WIDE, builds_on="torch_bmm", detail=True)
def torch_einsum(a, b):
    return torch.einsum("bmk,bkn->bmn", a, b)
