"""Right but for one call in a thousand."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "differs from the first"
REFUSED_BY = "timing"
_calls = [0]


def wrong_once_in_a_thousand(a, b):
    _calls[0] += 1
    return torch.bmm(a, b) * (1 + (_calls[0] % 1000 == 0))
