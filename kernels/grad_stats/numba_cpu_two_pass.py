"""Two walks over g instead of three: the first sums its columns and squares its rows,
the second needs ḡ.

Eight rows at a time, so a vector of the sums is read and written once for eight of g.
Threads take ranges of columns; each of them leaves float64 partial norms for all rows,
added up in a fixed order.
"""

from batchline.kernels._cpu.columns import statistics_of
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.op import WIDE
from batchline.kernels.statistics import of_nothing

COLUMNS = 1024


@grad_stats.variant(
    backend="numba_cpu", dtypes=WIDE, needs="cpu", builds_on="torch_passes"
)
def numba_cpu_two_pass(g):
    return (
        statistics_of(g, COLUMNS, one_read=False)
        if len(g)
        else of_nothing(g.shape[1:], g.dtype, g.device)
    )
