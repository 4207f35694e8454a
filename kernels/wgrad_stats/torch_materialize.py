"""Every per-sample gradient is written, B·O·I of them, and then reduced in three passes (the baseline)."""
from kernels.grad_stats.torch_passes import passes
from kernels.wgrad_stats import wgrad_stats
from kernels.wgrad_stats._products import product


@wgrad_stats.variant(backend="torch")
def torch_materialize(x, dy):
    mean, n, d = passes(product(dy.mT, x).flatten(1))
    return mean.view(dy.shape[2], x.shape[2]), n, d
