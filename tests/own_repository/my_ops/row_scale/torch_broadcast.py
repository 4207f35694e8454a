"""One product that broadcasts the scales over the parameters (the baseline)."""

from . import row_scale


@row_scale.variant(backend="torch")
def torch_broadcast(x, s):
    return x * s[:, None]
