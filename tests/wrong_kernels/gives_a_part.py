"""Gives the mean alone, which is the cheapest of the three."""

from batchline.kernels.grad_stats import grad_stats as OP  # noqa: F401

UNRANKED_FOR = "gives only some of the op's outputs"
DECLARES = {"gives": 1}


def gives_a_part(g):
    return OP.reference(g)[0].to(OP.dtypes(g))
