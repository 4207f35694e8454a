"""Takes a workspace of 10 TiB."""

import torch

from batchline.bench.statuses import OUT_OF_MEMORY as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "memory"


def asks_for_10_tib(a, b):
    torch.empty(10 * 2**40, dtype=torch.uint8, device=a.device)
    return torch.bmm(a, b)
