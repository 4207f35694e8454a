"""Every per-sample gradient is written, B·O·I of them, and then reduced in three passes
(the baseline).

The passes are those of grad_stats' baseline, and its running sums over all parameters
are held to the same bound.
"""

import functools

from batchline.kernels.grad_stats.torch_passes import passes, running_sum
from batchline.kernels.wgrad_stats import tolerance, wgrad_stats
from batchline.kernels.wgrad_stats._products import product


@wgrad_stats.variant(
    backend="torch", tolerance=functools.partial(tolerance, error_of_sum=running_sum)
)
def torch_materialize(x, dy):
    mean, n, d = passes(product(dy.mT, x).flatten(1))
    return mean.view(dy.shape[2], x.shape[2]), n, d
