"""Scales the gradients in place before it adds them."""

from batchline.kernels.grad_reduce import grad_reduce as OP  # noqa: F401

REFUSED_FOR = "it changed its inputs"


def changes_its_inputs(g):
    return g.mul_(0.5).sum(0) * (2 / len(g))
