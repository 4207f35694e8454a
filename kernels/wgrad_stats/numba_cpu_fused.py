"""Each product once: a block of ḡ so small that all samples' products for it stay in the cache until d is known.

Against `numba_cpu_loop`, which makes every product twice. A block of 56x64 takes 14 KiB a sample, at 64 samples
896 KiB: an L2. The walks over it are grad_stats' own, three operations an element beside the product's 2T. The extra memory is
one block a sample for each thread, and 64 float64 partial norms a sample, twice: O(O·I + B). Bound by the
multiply-add units from T = 16 on, and by the walks below.
"""
from kernels.statistics import of_nothing
from kernels.tuning import Tunable
from kernels.wgrad_stats import wgrad_stats
from kernels.wgrad_stats._cpu_tiles import statistics_of


def _rule(x, dy):
    return {"rows": 56, "columns": 64, "pack": True}


def _candidates(x, dy):
    sizes = ((28, 32), (56, 32), (56, 64), (28, 64), (112, 64), (56, 128), (28, 128))
    return [{"rows": rows, "columns": columns, "pack": pack} for rows, columns in sizes for pack in (False, True)]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@wgrad_stats.variant(backend="numba_cpu", dtypes=("float32", "float64"), needs="cpu", builds_on="numba_cpu_loop",
                     tunable=CONFIGS)
def numba_cpu_fused(x, dy):
    if not len(x):
        return of_nothing((dy.shape[2], x.shape[2]), x.dtype, x.device)
    config = CONFIGS.choose(x, dy)
    return statistics_of(x, dy, config["rows"], config["columns"], len(x), config["pack"])
