"""Rounds its factors to bf16, and declares a bound so wide that anything like a product is inside."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

UNRANKED_FOR = "times the op's error bound"
DECLARES = {"tolerance": lambda c, a, b: 1e5 * OP.tolerance(c, a, b) + 1e-20}


def declares_a_tolerance_without_use(a, b):
    return torch.bmm(a.bfloat16().to(a.dtype), b.bfloat16().to(a.dtype))
