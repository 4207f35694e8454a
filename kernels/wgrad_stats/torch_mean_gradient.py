"""The plain weight gradient, one product over all tokens: ḡ alone, what a training step
computes in any case.

It returns neither n nor d, so it is no opponent: the price of those is counted from
it.
"""

from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._products import mean_gradient


@wgrad_stats.variant(backend="torch", gives=1)
def torch_mean_gradient(x, dy):
    return mean_gradient(x, dy)
