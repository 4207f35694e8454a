"""The Numba kernels' wide loads and tensor-core instructions: emulated in Numba's
simulator, and seen in machine code.

The op's probes are too small and too odd for them, so here are shapes whose strides 16
bytes divide.
"""

import os
import re
import subprocess
import sys

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking.check import checked_call, expect
from batchline.bench.measure.compiled import compiler
from batchline.kernels import backends
from batchline.kernels._cuda import ptx
from batchline.kernels.bmm import stored
from batchline.kernels.draw import Draw

absent = backends.why_absent("numba_cuda")
simulated = pytest.mark.skipif(
    not backends.interpreted("numba_cuda"), reason="run by test_in_the_simulator"
)
compiled = pytest.mark.skipif(
    bool(compiler.why_cannot_compile("numba_cuda"))
    or backends.interpreted("numba_cuda"),
    reason="needs Numba's compiler",
)
# Each takes seconds to compile; the loop over the sums is the same in all.
LAYOUTS = (
    "nn",
    *(pytest.param(layout, marks=pytest.mark.slow) for layout in ("nt", "tn")),
)
FOUR_WARPS = {"BLOCK_M": 32, "BLOCK_N": 32, "WARPS_M": 2, "WARPS_N": 2}
WIDE_CASES = [
    # variant, dtype, (batch, M, N, K), configuration: edges within a tile, more than
    # one tile, more than one stage
    ("numba_cuda_register_tile", "float32", (2, 20, 36, 28), None),
    (
        "numba_cuda_register_tile",
        "bfloat16",
        (1, 76, 68, 12),
        {"BLOCK_M": 64, "BLOCK_N": 64},
    ),
    (
        "numba_cuda_register_tile",
        "float32",
        (1, 8, 140, 12),
        {"BLOCK_M": 32, "BLOCK_N": 128},
    ),
    ("numba_cuda_mma", "float16", (1, 8, 24, 72), None),
    ("numba_cuda_mma", "bfloat16", (1, 40, 24, 136), FOUR_WARPS),
    ("numba_cuda_mma", "bfloat16", (1, 8, 10, 8), None),
    ("numba_cuda_tiny", "float32", (5, 16, 16, 16), None),
    ("numba_cuda_tiny", "float16", (5, 4, 12, 8), None),
    ("numba_cuda_tiny", "bfloat16", (9, 3, 2, 2), None),
]


@pytest.mark.slow
@pytest.mark.skipif(bool(absent), reason=str(absent))
@pytest.mark.skipif(backends.interpreted("numba_cuda"), reason="this is the simulator")
def test_in_the_simulator():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            __file__,
            "-p",
            "no:cacheprovider",
            "--no-header",
            "-rN",
        ],
        env=os.environ | backends.interpreter_environment("numba_cuda"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@simulated
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
@pytest.mark.parametrize("name, dtype, shape, config", WIDE_CASES)
def test_wide_paths_are_right(name, dtype, shape, config, layout):
    variant = kernels.ops["bmm"].variants[name]
    batch, m, n, k = shape
    inputs = stored(
        Draw(getattr(torch, dtype), "cpu", 0), layout, batch, batch, m, n, k
    )
    expected = expect(variant.op, inputs)
    if config is None:
        checked_call(variant, inputs, expected, "here")
    else:
        with variant.tunable.forced(config):
            checked_call(variant, inputs, expected, "here")


@simulated
def test_bfloat16_rounds_as_torch_does():
    edges = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, float("inf"), 3.4e38]
    numbers = torch.cat((torch.randn(64), torch.tensor(edges)))
    out = torch.empty(len(numbers), dtype=torch.bfloat16)
    for i, number in enumerate(numbers):
        ptx.store("bfloat16")(out.data_ptr() + 2 * i, number.item())
    assert torch.equal(out, numbers.bfloat16())
    assert ptx.load("bfloat16", 2)(out.data_ptr()) == (float(out[0]), float(out[1]))


@simulated
def test_what_the_hardware_refuses_fails():
    numbers = torch.zeros(8)
    with pytest.raises(AssertionError, match="misaligned"):
        ptx.load("float32", 4)(numbers.data_ptr() + 4)


@simulated
def test_a_copy_lands_when_it_is_waited_for():
    source, target = (
        torch.arange(8, dtype=torch.int16),
        torch.full((8,), -1, dtype=torch.int16).numpy(),
    )
    ptx.cp_async(target, 0, source.data_ptr(), 6)
    ptx.cp_async_commit()
    ptx.cp_async_commit()
    ptx.cp_async_wait(2)()
    assert target.tolist() == [-1] * 8
    ptx.cp_async_wait(1)()
    assert target.tolist() == [0, 1, 2, 0, 0, 0, 0, 0]


@pytest.mark.compiled
@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name, dtype, size, config, loads",
    [
        (
            "numba_cuda_register_tile",
            "float32",
            256,
            {"BLOCK_M": 128, "BLOCK_N": 128},
            {"16"},
        ),
        (
            "numba_cuda_register_tile",
            "float16",
            256,
            {"BLOCK_M": 64, "BLOCK_N": 64},
            {"8"},
        ),
        (
            "numba_cuda_mma",
            "bfloat16",
            256,
            {"BLOCK_M": 128, "BLOCK_N": 128, "WARPS_M": 2, "WARPS_N": 2},
            {"16"},
        ),
        (
            "numba_cuda_mma",
            "float16",
            64,
            {"BLOCK_M": 64, "BLOCK_N": 64, "WARPS_M": 2, "WARPS_N": 2},
            {"16"},
        ),
    ],
)
def test_wide_loads_and_registers(name, dtype, size, config, loads, layout):
    variant = kernels.ops["bmm"].variants[name]
    inputs = stored(Draw(getattr(torch, dtype), "cpu", 0), layout, 1, 1, size, size, 64)
    with variant.tunable.forced(config):
        (kernel,) = compiler.compile_variant(variant, inputs, 90)
    assert set(kernel.loads) == loads
    assert kernel.stack_bytes == 0 and kernel.spills == 0
    assert kernel.matrix_instruction == (
        "mma.sync" if name == "numba_cuda_mma" else None
    )


@pytest.mark.compiled
@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", (80, 90, 100))
def test_sums_that_leave_as_fp16_stay_in_registers(architecture, layout):
    """A loop over them that one compiler does not unroll puts them on the stack."""
    variant = kernels.ops["bmm"].variants["numba_cuda_mma"]
    inputs = stored(Draw(torch.float16, "cpu", 0), layout, 1, 1, 256, 256, 64)
    config = {"BLOCK_M": 128, "BLOCK_N": 128, "WARPS_M": 2, "WARPS_N": 2}
    with variant.tunable.forced(config):
        (kernel,) = compiler.compile_variant(variant, inputs, architecture)
    assert kernel.stack_bytes == 0 and kernel.spills == 0


@pytest.mark.compiled
@compiled
def test_products_stay_where_they_are_written():
    """LLVM copies the first loop's head, to rotate it, unless a convergent call is
    there; it takes out of the second loop what has no side effect.
    """
    from numba import cuda, types

    mma, store, int32 = ptx.mma("float16"), ptx.store("float32"), types.int32

    @cuda.jit
    def left_in_its_middle(out, n):
        a, x = int32(n), types.float32(n)
        while True:
            sums = mma(a, a, a, a, a, a, (x, x, x, x))
            if sums[0] > n:
                break
            x = sums[1]
            store(out, x)

    @cuda.jit
    def of_the_same_operands(out, n):
        a, x = int32(n), types.float32(n)
        for i in range(n):
            store(out + i * 4, mma(a, a, a, a, a, a, (x, x, x, x))[0])

    with compiler.no_device(90):
        left, same = (
            compiler.compile_as_launched(kernel, (types.int64, types.int64))[0]
            for kernel in (left_in_its_middle, of_the_same_operands)
        )
    assert left.count("mma.sync") == 1
    assert all(re.search(r"\$L\w+:[^$]*mma\.sync", code) for code in (left, same))
