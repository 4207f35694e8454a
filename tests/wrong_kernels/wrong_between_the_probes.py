"""Right on the sizes of its op's probes and scenarios, and on no others."""

import functools

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "elements are wrong"
REFUSED_BY = "timing"


def wrong_between_the_probes(a, b):
    known = (*a.shape[1:], b.shape[2]) in _sizes()
    return torch.bmm(a, b) if known else torch.bmm(a, b) * 1.5


@functools.cache
def _sizes():
    probes = (make(torch.float32, "meta", 0) for make in OP.probes.values())
    scenarios = (
        tuple(scenario.sizes[name] for name in "MKN")
        for scenario in OP.scenarios.values()
    )
    return {(*a.shape[1:], b.shape[2]) for a, b in probes} | set(scenarios)
