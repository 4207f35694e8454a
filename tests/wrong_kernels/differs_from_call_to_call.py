"""Adds the batch in an order drawn anew each time, as atomics do."""

import torch

from batchline.kernels.grad_reduce import grad_reduce as OP  # noqa: F401

REFUSED_FOR = "two calls on the same inputs differ"


def differs_from_call_to_call(g):
    total = torch.zeros(g.shape[1], dtype=torch.float32, device=g.device)
    for row in torch.randperm(len(g)):
        total = total + g[row]
    return (total / len(g)).to(g.dtype)
