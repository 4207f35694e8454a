"""Eight rows at a time: a vector of the sums is read and written once for eight of g,
which are eight streams.

Against `numba_cpu_parallel`, whose every row goes through the sums in L1. fp16 and bf16
are widened as they are loaded. Rows are summed by 512, and these sums once more, so
that a long batch loses no digits.
"""

from batchline.kernels._cpu.columns import mean_of
from batchline.kernels.grad_reduce import grad_reduce
from batchline.kernels.op import WIDE

COLUMNS = 1024


@grad_reduce.variant(
    backend="numba_cpu", dtypes=WIDE, needs="cpu", builds_on="numba_cpu_parallel"
)
def numba_cpu_together(g):
    if not len(g):
        return g.new_full(g.shape[1:], float("nan"))
    return mean_of(g, COLUMNS).to(g.dtype)
