"""Loop and accumulate: a block of ḡ for sixteen samples at a time, added up and
squared, and made again for d.

Against `torch_materialize`, which writes all B·O·I numbers and reads them three times:
here only a block of a few samples exists, in the caches of the thread that makes it. d
needs the whole mean first, so every product is computed twice: 4·B·T·I·O operations.
The register tile is that of bmm's `numba_cpu_blocked`.
"""

from batchline.kernels.statistics import of_nothing
from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._cpu_tiles import statistics_of

ROWS, COLUMNS, TOGETHER = 56, 64, 16


@wgrad_stats.variant(
    backend="numba_cpu",
    dtypes=("float32", "float64"),
    needs="cpu",
    builds_on="torch_materialize",
)
def numba_cpu_loop(x, dy):
    if not len(x):
        return of_nothing((dy.shape[2], x.shape[2]), x.dtype, x.device)
    return statistics_of(x, dy, ROWS, COLUMNS, TOGETHER, pack=False)
