"""How many thread blocks a variant launches: its launcher runs on CPU tensors, and the
launches are only noted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.measure.compiled.compiler import numba_config, triton_config
from batchline.bench.measure.compiled.static_facts import never_written
from batchline.bench.stats.roofline import Waves, occupancy
from batchline.kernels.architectures import KNOWN, WITHOUT_GPU
from batchline.kernels.op import Tensors, Variant
from batchline.kernels.target import compiling_for


@dataclass(frozen=True)
class Grid:
    """One launch: its kernel, the configuration as codegen.Compiled words it, and the
    blocks in x, y and z.
    """

    kernel: str
    config: str
    blocks: tuple[int, int, int]


def grids_of(
    variant: Variant, inputs: Tensors, architecture: int = WITHOUT_GPU
) -> list[Grid]:
    """Every launch of the variant on these inputs (CPU tensors) for sm_`architecture`;
    no kernel is compiled or run.
    """
    grids: list[Grid] = []
    note = {"triton": _noted_triton, "numba_cuda": _noted_numba}[variant.backend]
    with compiling_for(architecture), note(grids):
        variant(*inputs)
    return grids


def waves_of(
    variant: Variant,
    scenario: str,
    dtype: str,
    batch: int,
    compiled: Sequence[Mapping],
    gpu: Mapping,
) -> Waves | None:
    """How the variant's launch fills a GPU at `batch`; None where it is not one launch
    with so many blocks a sample.

    Args:
        compiled: rows of bench.measure.compiled.static_facts, in which its kernel must stand in
        its configuration. gpu: "multiprocessors" and "compute_capability" ("9.0").
    """
    architecture = int(gpu["compute_capability"].replace(".", ""))
    if architecture not in KNOWN:
        return None
    problems = (
        never_written(variant.op.make_inputs(scenario, size, dtype, "meta"))
        for size in (batch, 2 * batch)
    )
    launches = [grids_of(variant, inputs, architecture) for inputs in problems]
    if any(len(launched) != 1 for launched in launches):
        return None
    (one,), (twice,) = launches
    blocks, in_twice = math.prod(one.blocks), math.prod(twice.blocks)
    if (
        (one.kernel, one.config) != (twice.kernel, twice.config)
        or in_twice != 2 * blocks
        or blocks % batch
    ):
        return None
    for row in compiled:
        if (
            row["variant"],
            row["dtype"],
            row["architecture"],
            row.get("kernel"),
            row.get("config"),
        ) == (variant.id, dtype, architecture, one.kernel, one.config):
            held = occupancy(
                architecture, row["threads"], row["registers"], row["shared_bytes"]
            )
            return Waves(blocks // batch, gpu["multiprocessors"], held.blocks)
    return None


@contextlib.contextmanager
def _noted_triton(grids: list[Grid]) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    def note(self, *args, grid, warmup, **kwargs):
        given = (
            grid(dict(zip(self.arg_names, args)) | kwargs) if callable(grid) else grid
        )
        grids.append(
            Grid(self.__name__, triton_config(self, args, kwargs), _three(given))
        )

    run, JITFunction.run = JITFunction.run, note
    try:
        yield
    finally:
        JITFunction.run = run


@contextlib.contextmanager
def _noted_numba(grids: list[Grid]) -> Iterator[None]:
    from numba.cuda import dispatcher

    def note(self, configuration):
        grids.append(
            Grid(
                self.py_func.__name__,
                numba_config(self.py_func),
                _three(configuration[0]),
            )
        )
        return lambda *args: None

    getitem, dispatcher.CUDADispatcher.__getitem__ = (
        dispatcher.CUDADispatcher.__getitem__,
        note,
    )
    try:
        yield
    finally:
        dispatcher.CUDADispatcher.__getitem__ = getitem


def _three(grid) -> tuple[int, int, int]:
    return (*(grid if isinstance(grid, tuple) else (grid,)), 1, 1)[:3]
