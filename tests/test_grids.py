"""No launch asks for more blocks than a grid counts: 65,535 in y and z, 2³¹ − 1 in x, whichever size is large.

The GPU variants' launchers run on CPU tensors while launches are only noted: no kernel is compiled or run.
"""
import contextlib

import pytest
import torch

from bench.measure.codegen import why_cannot_compile
from kernels.backends import triton
from kernels.bmm import bmm
from kernels.op import Variant

MANY = 70_000
# B, M, N, K: more entries than grid.y counts, or more tiles of 16.
HUGE = {"batch": (MANY, 8, 8, 8), "one_element": (MANY, 1, 1, 1), "ragged": (MANY, 33, 5, 17),
        "tiles": (MANY, 32, 32, 16), "rows": (1, 16 * MANY, 1, 1), "tall": (2, 16 * MANY, 16, 16),
        "columns": (1, 1, 16 * MANY, 1), "wide": (2, 16, 16 * MANY, 16), "deep": (1, 16, 16, 16 * MANY)}


@contextlib.contextmanager
def _noted_triton(grids):
    from triton.runtime.jit import JITFunction

    def note(self, *args, grid, warmup, **kwargs):
        grids.append(grid(dict(zip(self.arg_names, args)) | kwargs) if callable(grid) else grid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", note)
        yield


@contextlib.contextmanager
def _noted_numba(grids):
    from numba.cuda import dispatcher

    def note(self, configuration):
        grids.append(configuration[0])
        return lambda *args: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.CUDADispatcher, "__getitem__", note)
        yield


NOTED = {"triton": _noted_triton, "numba_cuda": _noted_numba}


def _params():
    for variant in bmm.variants.values():
        if why_cannot_compile(variant.backend) is None:
            for dtype in variant.dtypes:
                yield pytest.param(variant, getattr(torch, dtype), id=f"{variant.name}-{dtype}")


def grids_of(variant, inputs):
    grids = []
    with NOTED[variant.backend](grids):
        variant(*inputs)
    return [(*(grid if isinstance(grid, tuple) else (grid,)), 1, 1)[:3] for grid in grids]


def check(variant, dtype):
    """The problems of HUGE that were launched, under each configuration that is worth timing."""
    launched = set()
    for name, (batch, m, n, k) in HUGE.items():
        a, rows, columns = (torch.empty(shape, dtype=dtype) for shape in ((batch, m, k), (batch, k, n), (batch, n, k)))
        for inputs in ((a, rows), (a, columns.mT), (a, columns[:1].mT.expand(batch, -1, -1))):
            if variant.why_unsupported(*inputs):
                continue
            configs = [] if variant.tunable is None else variant.tunable.candidates(*inputs)
            for config in (None, *configs):
                with contextlib.nullcontext() if config is None else variant.tunable.forced(config):
                    grids = grids_of(variant, inputs)
                assert grids, f"{name}: nothing was launched"
                for x, y, z in grids:
                    assert 1 <= x < 2 ** 31 and 1 <= y <= 65535 and 1 <= z <= 65535, f"{name}, {config}: {(x, y, z)}"
                launched.add(name)
    return launched


@pytest.mark.parametrize("variant, dtype", list(_params()))
def test_a_grid_holds_any_size(variant, dtype):
    assert check(variant, dtype) & {"batch", "tiles"}  # or it declined all that have many entries


@triton.jit
def _nothing():
    pass


@pytest.mark.skipif(why_cannot_compile("triton") is not None, reason="needs Triton")
def test_a_batch_in_grid_y_is_refused():
    def batch_in_y(a, b):
        _nothing[lambda meta: (1, len(a))]()

    with pytest.raises(AssertionError, match=r"batch, None: \(1, 70000, 1\)"):
        check(Variant(bmm, batch_in_y, "triton"), torch.float32)
