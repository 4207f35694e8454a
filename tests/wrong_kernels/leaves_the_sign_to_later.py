"""Multiplies by −A and sets the result's negative bit: whoever reads it has to turn the sign."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "its negative bit is set"


def leaves_the_sign_to_later(a, b):
    return torch._neg_view(torch.bmm(-a, b))
