"""The Numba kernels that add up g: wide loads, several turns of rows and of columns,
splits; and their machine code.

The op's probes have few rows that 16 bytes divide, and columns for no more than one
turn of a block on 132 SMs.
"""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking.check import checked_call, expect
from batchline.bench.measure.compiled import compiler
from batchline.kernels import backends
from batchline.kernels._cuda.block_reduce import lanes_of
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
VARIANTS = (
    "grad_reduce/numba_cuda_vectorised",
    "grad_stats/numba_cuda_two_pass",
    "grad_stats/numba_cuda_one_read",
)
CASES = [
    # dtype, (B, P), multiprocessors
    ("float32", (5, 96), 1),  # columns in several turns, all rows at once
    ("float32", (21, 72), 1),  # both in several turns
    ("float32", (3, 42), 132),  # rows that 8 bytes divide
    ("bfloat16", (19, 104), 1),
    ("float16", (33, 16), 132),
]


def _variant(name):
    op, _, variant = name.partition("/")
    return kernels.ops[op].variants[variant]


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
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype, shape, multiprocessors", CASES)
def test_turns_and_splits_are_right(monkeypatch, name, dtype, shape, multiprocessors):
    variant = _variant(name)
    for other in VARIANTS:
        monkeypatch.setattr(
            importlib.import_module(_variant(other).function.__module__),
            "multiprocessors",
            lambda device: multiprocessors,
        )
    inputs = (Draw(getattr(torch, dtype), "cpu", 0).uniform(*shape).add_(0.25),)
    checked_call(variant, inputs, expect(variant.op, inputs), "here")


@pytest.mark.parametrize(
    "matrix, lanes",
    [
        (torch.empty(3, 8), 4),
        (torch.empty(3, 8).bfloat16(), 8),
        (torch.empty(3, 6), 2),
        (torch.empty(3, 7), 1),
        (torch.empty(1, 8)[:, 4:], 4),
        (torch.empty(1, 9)[:, 1:], 1),
        (torch.empty(3, 12)[:, 2:10], 2),
        (torch.empty(8, 3).T, 1),
        (torch.empty(1, 8).expand(3, -1), 4),
        (torch.empty(3, 10)[:, :8], 2),
    ],
)
def test_lanes_are_what_every_row_is_aligned_to(matrix, lanes):
    assert lanes_of(matrix) == lanes


@pytest.mark.compiled
@compiled
@pytest.mark.parametrize(
    "name, batch",
    [
        ("grad_reduce/numba_cuda_vectorised", 64),
        ("grad_stats/numba_cuda_one_read", 64),
        ("grad_stats/numba_cuda_one_read", 1024),
    ],
)
def test_every_load_of_g_is_16_bytes_and_nothing_spills(name, batch):
    inputs = (torch.empty((batch, 65536), dtype=torch.bfloat16),)
    kernel = compiler.compile_variant(_variant(name), inputs, 90)[0]
    assert (
        kernel.loads["16"] >= 4 and "2" not in kernel.loads
    )  # 4 bytes are the partial sums
    assert kernel.spills == kernel.stack_bytes == 0
