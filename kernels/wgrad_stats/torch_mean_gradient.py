"""The plain weight gradient, one product over all tokens: ḡ alone, what a training step
computes in any case.

Not an opponent, for it gives neither n nor d; it is what their price is counted from.
"""

from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._products import mean_gradient


@wgrad_stats.variant(backend="torch", gives=1)
def torch_mean_gradient(x, dy):
    return mean_gradient(x, dy)
