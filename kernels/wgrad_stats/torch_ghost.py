"""Ghost norms: n_b = Σ_ts (x_t·x_s)(dy_t·dy_s) from two Gram matrices, ḡ and d from one product each.

Nothing of size B·O·I is written; instead 2·B·T²·(I+O) operations and two Grams of T² a sample (Goodfellow,
arXiv:1510.01799, for T = 1; Li et al., arXiv:2110.05679, §4, for sequences). The sum is signed: where the tokens of a
sample cancel, so do its terms, and their rounding stays. So it is held to a bound on its own terms,
γ·(Σ_t ‖x_t‖‖dy_t‖)² with γ = (I + O + 2T + 64)·u₃₂, and its Grams are fp32 whatever the inputs are.
"""
from kernels.elements import unit_roundoff
from kernels.statistics import accumulator
from kernels.wgrad_stats import tolerance, wgrad_stats
from kernels.wgrad_stats._products import along_mean, mean_gradient, product


def ghost_tolerance(expected, x, dy):
    """The op's, and γ·(Σ_t ‖x_t‖‖dy_t‖)² more for n."""
    mean_off, n_off, d_off = tolerance(expected, x, dy)
    terms = (x.shape[2] + dy.shape[2] + 2 * x.shape[1] + 64) * unit_roundoff(accumulator(x.dtype))
    magnitude = (x.double().norm(dim=2) * dy.double().norm(dim=2)).sum(1)
    return mean_off, n_off + terms * magnitude.square(), d_off


@wgrad_stats.variant(backend="torch", builds_on="torch_materialize", tolerance=ghost_tolerance)
def torch_ghost(x, dy):
    n = (product(x, x.mT) * product(dy, dy.mT)).sum((1, 2))
    mean = mean_gradient(x, dy)
    return mean, n, along_mean(x, dy, mean)
