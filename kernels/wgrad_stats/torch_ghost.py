"""Ghost norms: n_b = Σ_ts (x_t·x_s)(dy_t·dy_s) from two Gram matrices, ḡ and d from one
product each.

Nothing of size B·O·I is written; instead 2·B·T²·(I+O) operations and two Grams of T² a
sample (Goodfellow, arXiv:1510.01799, for T = 1; Li et al., arXiv:2110.05679, §4, for
sequences). The sum is signed: where the tokens of a sample cancel, so do its terms, and
their rounding stays. So it is held to a bound on its own terms
(kernels/wgrad_stats/_bounds.py), and its Grams are fp32 whatever the inputs are.
"""

from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._bounds import ghost_tolerance
from batchline.kernels.wgrad_stats._products import along_mean, mean_gradient, product


@wgrad_stats.variant(
    backend="torch", builds_on="torch_materialize", tolerance=ghost_tolerance
)
def torch_ghost(x, dy):
    n = (product(x, x.mT) * product(dy, dy.mT)).sum((1, 2))
    mean = mean_gradient(x, dy)
    return mean, n, along_mean(x, dy, mean)
