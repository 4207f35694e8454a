"""Gives none of its op's outputs, and says so."""
from kernels.grad_stats import grad_stats as OP  # noqa: F401

REFUSED_FOR = "it declares to give 0 of 3 outputs"
DECLARES = {"gives": 0}


def declares_to_give_nothing(g):
    return ()
