"""One read of g from memory: a thread walks a block of columns for ḡ and n, and again
for d while it is cached.

Against `numba_cpu_two_pass`, whose second walk comes to a block when it has long left
the caches. A block of 64 rows of 1,024 columns is 256 KiB, a quarter of an L2 of 1 MiB;
that of a larger batch comes from the last level of cache. A row's part is 4 KiB, for
each part is a jump to another page. While the second walk computes, it asks for the
next block, so that memory does not wait for it. The extra memory is 16 float64 partial
norms a sample, twice. Bound in the caches by the two walks' own loads.
"""

from batchline.kernels._cpu.columns import statistics_of
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.op import WIDE
from batchline.kernels.statistics import of_nothing
from batchline.kernels.tuning import Tunable


def _rule(g, target):
    return {"columns": 1024}


def _candidates(g, target):
    return [
        {"columns": width}
        for width in (256, 512, 1024, 2048, 4096)
        if width in (256, 1024) or width < g.shape[1]
    ]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@grad_stats.variant(
    backend="numba_cpu",
    dtypes=WIDE,
    needs="cpu",
    builds_on="numba_cpu_two_pass",
    tunable=CONFIGS,
)
def numba_cpu_one_read(g):
    if not len(g):
        return of_nothing(g.shape[1:], g.dtype, g.device)
    return statistics_of(g, CONFIGS.choose(g)["columns"], one_read=True)
