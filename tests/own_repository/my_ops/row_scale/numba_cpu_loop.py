"""A loop over rows and parameters, compiled by Numba, on one thread."""

import torch

from batchline.kernels._cpu.jit import njit

from . import row_scale


@njit()
def _kernel(x, s, y):
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            y[row, column] = x[row, column] * s[row]


@row_scale.variant(
    backend="numba_cpu",
    dtypes=("float32", "float64"),
    needs="cpu",
    builds_on="torch_broadcast",
)
def numba_cpu_loop(x, s):
    y = torch.empty(x.shape, dtype=x.dtype)
    _kernel(x.detach().numpy(), s.detach().numpy(), y.numpy())
    return y
