"""Whichever way was measured fastest near this problem on this device; by rule where none was.

`make tune` times the others on each problem, in their own tuned configurations, and keeps the winners' names beside
the kernels, so the crossovers are the device's. Only ways that keep the op's own error bound are chosen from: ghost
norms, whose sum is signed, are left to who asks for them by name. The call adds a look-up.
"""
import functools

from kernels.backends import DISPATCH
from kernels.tuning import Tunable
from kernels.wgrad_stats import wgrad_stats

_RULE = ("torch_rank_one", "triton_fused", "numba_cpu_fused")


@functools.cache
def _others():
    return {name: variant for name, variant in wgrad_stats.variants.items()
            if variant.backend != DISPATCH and variant.tolerance is None and variant.gives is None
            and not variant.slow_start}


def _takes(name, x, dy):
    variant, device = _others().get(name), "cuda" if x.is_cuda else "cpu"
    return variant and variant.why_not_here(device) is None and variant.why_unsupported(x, dy) is None


def _rule(x, dy):
    return {"variant": next((name for name in _RULE if _takes(name, x, dy)), wgrad_stats.baseline)}


def _candidates(x, dy):
    return [{"variant": name} for name in _others() if _takes(name, x, dy)]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@wgrad_stats.variant(backend=DISPATCH, tunable=CONFIGS, builds_on="torch_materialize")
def dispatched(x, dy):
    name = CONFIGS.choose(x, dy)["variant"]
    return _others()[name if _takes(name, x, dy) else wgrad_stats.baseline](x, dy)
