"""Steps on from entry to entry though all share one B, into memory that holds something else."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "on shared_b: "


def walks_a_shared_operand(a, b):
    if b.stride(0) == 0 and len(b) > 1:
        b = torch.cat([b[:1], torch.zeros_like(b[1:])])
    return torch.bmm(a, b)
