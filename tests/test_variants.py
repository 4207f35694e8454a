"""Every variant is right on every probe of its op, wherever it can run: natively here,
or in an interpreter.

In a process with TRITON_INTERPRET or NUMBA_ENABLE_CUDASIM set (test_interpreters.py
starts those) the GPU variants of that backend run on the CPU, on the probes that it can
walk; on a machine with a GPU everything runs there too.
"""

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking import check
from batchline.kernels import backends
from batchline.kernels.op import FP8
from tests.references import computed_once

pytestmark = pytest.mark.usefixtures(computed_once.__name__)
DTYPES = ("float32", "float16", "bfloat16", "float64")
INTERPRETED = [
    name for name in backends.INTERPRETED_BACKENDS if backends.interpreted(name)
]
MOST_FLOPS = {"triton": 1e6, "numba_cuda": 1e4}  # what an interpreter walks in seconds
QUICK_FLOPS = {"triton": 1e5, "numba_cuda": 1e3}
SLOW_STARTS = {("float32", "ragged")}  # seconds each, of compiling
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() and not INTERPRETED else ("cpu",)


def _params():
    """(variant, dtype, device, probes): on the CPU all probes in one test, which names
    the one that is wrong; on a GPU each in one of its own, for a fault there ends the
    process.
    """
    for variant, device, dtype in _computed_here():
        walked = [name for name in variant.op.probes if _walks(variant, dtype, name)]
        for is_slow in (False, True):
            probes = [
                name for name in walked if _takes_long(variant, dtype, name) is is_slow
            ]
            groups = [[name] for name in probes] if device == "cuda" else [probes]
            for group in filter(None, groups):
                yield _param(variant, dtype, device, group, is_slow)


def _computed_here():
    """(variant, device, dtype) of all that can run in this process."""
    for op in kernels.ops.values():
        for variant in op.variants.values():
            if INTERPRETED and variant.backend not in INTERPRETED:
                continue
            for device in DEVICES:
                if variant.why_not_here(device):
                    continue
                for dtype in (*DTYPES, FP8):
                    takes_it = _takes(variant, dtype)
                    if takes_it and not variant.why_not_here(device, dtype):
                        yield variant, device, dtype


def _param(variant, dtype, device, probes, is_slow):
    marks = [pytest.mark.gpu] if device == "cuda" else []
    if is_slow:
        marks.append(pytest.mark.slow)
    name = probes[0] if device == "cuda" else "slow" if is_slow else "quick"
    return pytest.param(
        variant,
        dtype,
        device,
        probes,
        id=f"{variant.id}-{device}-{dtype}-{name}",
        marks=marks,
    )


def _takes(variant, dtype):
    if INTERPRETED == ["triton"] and dtype == "bfloat16":
        return False  # Triton's interpreter holds bf16 as integers, and its dot multiplies those
    return dtype in variant.dtypes if variant.dtypes is not None else dtype != FP8


def _walks(variant, dtype, probe):
    if variant.slow_start and (dtype, probe) not in SLOW_STARTS:
        return False
    if not INTERPRETED:
        return True
    if INTERPRETED == ["numba_cuda"] and dtype != "float32" and probe != "ragged":
        return False  # the simulator starts a Python thread for each thread of the grid: seconds a probe
    if INTERPRETED == ["triton"] and dtype == FP8 and probe.startswith("aligned"):
        return False  # the interpreter cuts off what it stores in bf16; sums of so many eighths need more digits
    return _flops(variant, probe) <= MOST_FLOPS[variant.backend]


def _takes_long(variant, dtype, probe):
    """Whether interpreting it takes long: `make test` does without what other dtypes
    and probes show as well.
    """
    if not INTERPRETED:
        return False
    most = QUICK_FLOPS[variant.backend]
    return probe != "ragged" and (
        dtype not in ("float32", FP8) or _flops(variant, probe) > most
    )


def _flops(variant, probe):
    return variant.op.flops(*variant.op.probes[probe](torch.float32, "meta", 0))


@pytest.mark.parametrize("variant, dtype, device, probes", list(_params()))
def test_variant_is_right(variant, dtype, device, probes):
    check.check_variant(variant, getattr(torch, dtype), device, probes)


@pytest.mark.parametrize("op", kernels.ops.values(), ids=kernels.ops)
def test_every_file_of_an_op_loads(op):
    broken = [
        name
        for name, variant in op.variants.items()
        if variant.idea == "(does not load)"
    ]
    assert not broken
    assert op.baseline in op.variants
