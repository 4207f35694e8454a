"""The rung on tensor memory: what it promises of its compiled code for sm_100."""

import re

import pytest
import torch

from batchline.bench.measure.compiled import compiler
from batchline.kernels import backends
from batchline.kernels.bmm import bmm, stored
from batchline.kernels.draw import Draw
from batchline.kernels.target import compiling_for

pytestmark = pytest.mark.skipif(
    backends.interpreted("triton") or backends.why_absent("triton") is not None,
    reason="nothing is compiled by an interpreter",
)
VARIANT = bmm.variants["gluon_tcgen05"]
COLUMNS = 512  # of tensor memory


def operands(dtype, layout, batch=64, m=512, n=512, k=512):
    return stored(Draw(dtype, "cpu", 0), layout, batch, batch, m, n, k)


def compiled(inputs):
    """The PTX and the facts of the only launch."""
    (launch,) = compiler.launches_of(VARIANT, inputs, 100)
    (facts,) = compiler.read([launch])
    return launch.ptx, facts


@pytest.mark.parametrize("number", (80, 90, 120))
def test_it_is_declined_where_there_is_no_tensor_memory(number):
    with compiling_for(number):
        why = VARIANT.why_unsupported(*operands(torch.float16, "nn", 1, 16, 16, 16))
    assert why == (
        f"tcgen05 is of compute capability 10.x alone, and this is sm_{number}"
    )


@pytest.mark.compiled
@pytest.mark.parametrize(
    "dtype, kind", [(torch.bfloat16, "f16"), (torch.float8_e4m3fn, "f8f6f4")]
)
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
def test_one_thread_issues_products_into_all_of_tensor_memory(dtype, kind, layout):
    ptx, facts = compiled(operands(dtype, layout))
    assert f"tcgen05.mma.cta_group::1.kind::{kind}" in ptx
    (columns,) = re.findall(r"tcgen05\.alloc\S+ \[\S+\], (\d+)", ptx)
    assert int(columns) == COLUMNS
    loads = re.findall(r"tcgen05\.ld\.sync\.aligned\.32x32b\.x(\d+)", ptx)
    assert loads == 4 * ["64"]  # a part of C each
    assert facts.warp_specialized and "setmaxnreg" in ptx
    assert (facts.stack_bytes, facts.spills, facts.warp_fault) == (0, 0, None)
    assert facts.threads == 256


@pytest.mark.compiled
@pytest.mark.parametrize(
    "n", [16, *(pytest.param(n, marks=pytest.mark.slow) for n in (32, 64, 128))]
)
def test_no_candidate_spills_or_asks_for_more_than_a_multiprocessor_has(n):
    inputs = operands(torch.float16, "nn", n=n)
    with compiling_for(100):
        configs = VARIANT.tunable.candidates(*inputs)
    for config in configs:
        with VARIANT.tunable.forced(config):
            ptx, facts = compiled(inputs)
        (columns,) = re.findall(r"tcgen05\.alloc\S+ \[\S+\], (\d+)", ptx)
        assert int(columns) <= COLUMNS, config
        assert facts.stack_bytes == 0 and facts.shared_bytes <= 227 * 1024, config
