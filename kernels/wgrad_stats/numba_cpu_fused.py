"""Each product once: a block of ḡ so small that all samples' products for it stay in
the cache until d is known.

Against `numba_cpu_loop`, which makes every product twice. A block of 112x64 takes 28
KiB a sample; blocks are smaller in larger batches, so that all samples' stay within 2
MiB. The walks over it are grad_stats' own, three operations an element beside the
product's 2T. X and dY are read again for each block: where they come from beyond L2
they are copied into panels, and the next sample's asked for meanwhile. The extra memory
is one block per sample for each thread, and 64 float64 partial norms per sample, twice:
O(O·I + B). Bound by the multiply-add units at many tokens, and by the walks at few.
"""

from batchline.kernels.statistics import of_nothing
from batchline.kernels.tuning import Tunable
from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._cpu_tiles import statistics_of

_SIZES = ((112, 64), (56, 64), (56, 32), (28, 32))  # rows, columns


def _rule(x, dy, target):
    """The largest block whose scratch stays within 2 MiB; copied into panels where X
    and dY come from beyond L2.
    """
    rows, columns = next(
        (size for size in _SIZES if len(x) * size[0] * size[1] <= 2**19), _SIZES[-1]
    )
    return {"rows": rows, "columns": columns, "pack": x.numel() + dy.numel() > 2**22}


def _candidates(x, dy, target):
    return [
        {"rows": rows, "columns": columns, "pack": pack}
        for rows, columns in (*_SIZES, (112, 128))
        for pack in (False, True)
    ]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@wgrad_stats.variant(
    backend="numba_cpu",
    dtypes=("float32", "float64"),
    needs="cpu",
    builds_on="numba_cpu_loop",
    tunable=CONFIGS,
)
def numba_cpu_fused(x, dy):
    if not len(x):
        return of_nothing((dy.shape[2], x.shape[2]), x.dtype, x.device)
    config = CONFIGS.choose(x, dy)
    return statistics_of(
        x, dy, config["rows"], config["columns"], len(x), config["pack"]
    )
