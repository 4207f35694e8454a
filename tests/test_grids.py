"""No launch asks for more blocks than a grid counts: 65,535 in y and z, 2³¹ − 1 in x,
whichever size is large.

The GPU variants' launchers run on CPU tensors while launches are only noted: no kernel
is compiled or run.
"""

import contextlib

import pytest
import torch

from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.compiled.static_facts import grids_of, waves_of
from batchline.kernels.backends import triton
from batchline.kernels.bmm import bmm
from batchline.kernels.op import Variant
from batchline.kernels.target import compiling_for
from tests.architectures import taken_for

MANY = 70_000
# B, M, N, K: more entries than grid.y counts, or more tiles of 16.
HUGE = {
    "batch": (MANY, 8, 8, 8),
    "one_element": (MANY, 1, 1, 1),
    "ragged": (MANY, 33, 5, 17),
    "tiles": (MANY, 32, 32, 16),
    "rows": (1, 16 * MANY, 1, 1),
    "tall": (2, 16 * MANY, 16, 16),
    "columns": (1, 1, 16 * MANY, 1),
    "wide": (2, 16, 16 * MANY, 16),
    "deep": (1, 16, 16, 16 * MANY),
}


def _params():
    for variant in bmm.variants.values():
        if why_cannot_compile(variant.backend) is None:
            for dtype in variant.dtypes:
                yield pytest.param(
                    variant, getattr(torch, dtype), id=f"{variant.name}-{dtype}"
                )


def check(variant, dtype):
    """The problems of HUGE that were launched, under each configuration that is worth
    timing.
    """
    launched = set()
    for name, (batch, m, n, k) in HUGE.items():
        a, rows, columns = (
            torch.empty(shape, dtype=dtype)
            for shape in ((batch, m, k), (batch, k, n), (batch, n, k))
        )
        for inputs in (
            (a, rows),
            (a, columns.mT),
            (a, columns[:1].mT.expand(batch, -1, -1)),
        ):
            architecture = taken_for(variant, inputs)
            if architecture is None:
                continue
            with compiling_for(architecture):
                configs = (
                    []
                    if variant.tunable is None
                    else variant.tunable.candidates(*inputs)
                )
            for config in (None, *configs):
                with (
                    contextlib.nullcontext()
                    if config is None
                    else variant.tunable.forced(config)
                ):
                    grids = grids_of(variant, inputs, architecture)
                assert grids, f"{name}: nothing was launched"
                for x, y, z in (grid.blocks for grid in grids):
                    assert (
                        1 <= x < 2**31 and 1 <= y <= 65535 and 1 <= z <= 65535
                    ), f"{name}, {config}: {(x, y, z)}"
                launched.add(name)
    return launched


@pytest.mark.parametrize("variant, dtype", list(_params()))
def test_a_grid_holds_any_size(variant, dtype):
    assert check(variant, dtype) & {
        "batch",
        "tiles",
    }  # or it declined all that have many entries


@triton.jit
def _nothing():
    pass


@pytest.mark.skipif(why_cannot_compile("triton") is not None, reason="needs Triton")
def test_a_batch_in_grid_y_is_refused():
    def batch_in_y(a, b):
        _nothing[lambda meta: (1, len(a))]()

    with pytest.raises(AssertionError, match=r"batch, None: \(1, 70000, 1\)"):
        check(Variant(bmm, batch_in_y, "triton"), torch.float32)


GPU = {"multiprocessors": 132, "compute_capability": "9.0"}
needs_triton = pytest.mark.skipif(
    why_cannot_compile("triton") is not None, reason="needs Triton"
)


def row(grid, **changes):
    return {
        "variant": "bmm/triton_tiled",
        "dtype": "float16",
        "architecture": 90,
        "kernel": grid.kernel,
        "config": grid.config,
        "threads": 128,
        "registers": 64,
        "shared_bytes": 32 * 1024,
    } | changes


@needs_triton
def test_the_waves_of_a_tiled_product():
    variant = bmm.variants["triton_tiled"]
    (grid,) = grids_of(variant, bmm.make_inputs("square_256", 64, "float16", "cpu"))
    found = waves_of(variant, "square_256", "float16", 64, [row(grid)], GPU)
    assert (
        found.ctas_per_sample,
        found.multiprocessors,
        found.ctas_per_multiprocessor,
    ) == (
        grid.blocks[0] * grid.blocks[1] * grid.blocks[2] // 64,
        132,
        6,
    )  # 228 KiB hold six of 33 KiB
    for stranger in (
        row(grid, config="another"),
        row(grid, architecture=80),
        row(grid, dtype="float32"),
        {
            "variant": "bmm/triton_tiled",
            "dtype": "float16",
            "architecture": 90,
            "error": "no",
        },
    ):
        assert waves_of(variant, "square_256", "float16", 64, [stranger], GPU) is None


@needs_triton
@pytest.mark.parametrize(
    "launch, blocks",
    [
        (lambda batch: _nothing[(4 * batch,)](), 4),
        (
            lambda batch: _nothing[(132,)](),
            None,
        ),  # as many as there are multiprocessors
        (lambda batch: _nothing[(batch + 7,)](), None),
        (
            lambda batch: (_nothing[(batch,)](), _nothing[(batch,)]()),
            None,
        ),  # two launches
    ],
    ids=["so many a sample", "persistent", "some more", "two launches"],
)
def test_only_one_launch_of_so_many_blocks_a_sample_has_waves(launch, blocks):
    variant = Variant(bmm, lambda a, b: launch(len(a)), "triton")
    grid, *_ = grids_of(variant, bmm.make_inputs("tiny_16", 64, "float16", "cpu"))
    found = waves_of(
        variant, "tiny_16", "float16", 64, [row(grid, variant=variant.id)], GPU
    )
    assert (found and found.ctas_per_sample) == blocks
