"""Accumulates into the first gradient and returns that."""

from batchline.kernels.grad_reduce import grad_reduce as OP  # noqa: F401

REFUSED_FOR = "lies in an input's memory"


def returns_its_inputs_buffer(g):
    g[0].copy_(g.mean(0))
    return g[0]
