"""Block-scaled products: how scales lie, what they stand for, what the library is given,
and the rung on tensor memory, compiled for sm_100 and executed in emulation.
"""

import importlib
import re

import pytest
import torch

from batchline.bench.measure.checking.check import check_outputs, expect
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.execution import (
    EARLY,
    LATE,
    SHUFFLED,
    execute,
)
from batchline.bench.statuses import NotMeasured
from batchline.kernels import backends
from batchline.kernels.architectures import KNOWN
from batchline.kernels.bmm_mxfp8 import (
    E8M0,
    PROBES,
    arranged,
    blocks_of,
    bmm_mxfp8,
    dequantised,
    in_rows,
)
from batchline.kernels.bmm_mxfp8.torch_scaled_mm import torch_scaled_mm
from batchline.kernels.target import compiling_for

VARIANT = bmm_mxfp8.variants["gluon_block_scaled"]
FP8 = torch.float8_e4m3fn
compiles = pytest.mark.skipif(
    backends.interpreted("triton") or backends.why_absent("triton") is not None,
    reason="nothing is compiled by an interpreter",
)


def given(probe):
    return PROBES[probe](FP8, "cpu", 0)


def e8m0(*codes):
    return torch.tensor(codes, dtype=torch.uint8).view(E8M0)


# --- scales -------------------------------------------------------------------------


def test_scales_lie_in_blocks_of_128_rows_by_4():
    """As cuBLAS documents them: block after block along K, and inside one the offset of
    row r and scale s is r % 32 * 16 + r // 32 * 4 + s.
    """
    rows, count = 300, 6
    codes = torch.randint(1, 255, (2, rows, count), dtype=torch.uint8)
    blocks = arranged(codes.view(E8M0))
    assert blocks.shape == (2, 3, 2, 512)
    flat = blocks.view(torch.uint8)
    for row in (0, 1, 31, 32, 127, 128, 299):
        for scale in range(count):
            offset = row % 32 * 16 + row % 128 // 32 * 4 + scale % 4
            found = flat[:, row // 128, scale // 4, offset]
            assert torch.equal(found, codes[:, row, scale]), (row, scale)
    assert int((flat != 0).sum()) == codes.numel()  # and the padding is 0
    assert torch.equal(in_rows(blocks, rows, count).view(torch.uint8), codes)


def test_32_elements_share_a_scale():
    rows = torch.ones(1, 2, 70).to(FP8)
    blocks = arranged(e8m0(*[127, 128, 130], *[0, 254, 255]).view(1, 2, 3))
    found = dequantised(rows, blocks, torch.float64)
    assert found[0, 0].tolist() == [1.0] * 32 + [2.0] * 32 + [8.0] * 6
    assert found[0, 1, :64].tolist() == [2.0**-127] * 32 + [2.0**127] * 32
    assert found[0, 1, 64:].isnan().all()


def test_a_product_of_other_scales_is_wrong():
    """What takes every scale for 1, and what takes a row's first one for all of K."""
    inputs = given("aligned_ragged_k")
    a, b, a_scales, b_scales = inputs
    expected = expect(bmm_mxfp8, inputs)
    first = in_rows(a_scales, a.shape[1], 3)[:, :, :1].expand(-1, -1, 3)
    for left in (e8m0(127).expand(2, 16, 3), first):
        wrong = bmm_mxfp8.reference(a, b, arranged(left), b_scales)
        with pytest.raises(NotMeasured):
            check_outputs(wrong.to(torch.bfloat16), inputs, expected, "here")


def with_gaps(blocks):
    """The same scales, each followed by another byte."""
    twice = blocks.view(torch.uint8).repeat_interleave(2, dim=3)
    return twice[..., ::2].view(E8M0)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda blocks: blocks.view(torch.uint8), "scales are uint8 [2, 1, 1, 512]"),
        (lambda blocks: blocks[..., :256], "scales are float8_e8m0fnu [2, 1, 1, 256]"),
        (with_gaps, "scales have gaps"),
    ],
)
def test_scales_that_lie_otherwise_are_declined(change, why):
    a, b, a_scales, b_scales = given("aligned")
    with compiling_for(100):
        assert VARIANT.why_unsupported(a, b, a_scales, b_scales) is None
        assert why in VARIANT.why_unsupported(a, b, change(a_scales), b_scales)
        assert why in VARIANT.why_unsupported(a, b, a_scales, change(b_scales))


# --- the library --------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch):
    """torch._scaled_mm in Python, behind the library's own checks; the products that it
    was asked for.
    """
    asked, real = [], torch._scaled_mm

    def scaled_mm(a, b, a_scales, b_scales, out_dtype, out):
        meta = (one.to("meta") for one in (a, b, a_scales, b_scales))
        shape = real(*meta, out_dtype=out_dtype).shape
        assert shape == out.shape and a_scales.is_contiguous()
        asked.append(tuple(shape))
        along = blocks_of(a.shape[1], 128)
        scales = (one.reshape(1, -1, along, 512) for one in (a_scales, b_scales))
        out.copy_(bmm_mxfp8.reference(a[None], b[None], *scales)[0])

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    return asked


@pytest.mark.parametrize("probe", ("aligned", "aligned_windows", "aligned_nan_scales"))
def test_the_library_is_given_an_entry_at_a_time(probe, library):
    a, b, *scales = given(probe)
    b = b[:, :, :16]
    inputs = a, b, *scales
    check_outputs(torch_scaled_mm(*inputs), inputs, expect(bmm_mxfp8, inputs), probe)
    assert library == 2 * [(a.shape[1], 16)]


def test_entries_that_share_b_are_one_product(library):
    a, b, a_scales, b_scales = bmm_mxfp8.make_inputs(
        "linear_forward", 2, "float8_e4m3fn", "cpu"
    )
    inputs = a, b[:, :, :128], a_scales, b_scales[:, :1]
    c = torch_scaled_mm(*inputs)
    check_outputs(c, inputs, expect(bmm_mxfp8, inputs), "linear_forward")
    assert library == [(256, 128)]


# --- the rung on tensor memory ------------------------------------------------------


@pytest.mark.parametrize("number", (90, 120))
def test_it_is_declined_where_there_is_no_tensor_memory(number):
    with compiling_for(number):
        why = VARIANT.why_unsupported(*given("aligned"))
    assert why == (
        f"tcgen05 is of compute capability 10.x alone, and this is sm_{number}"
    )


@compiles
@pytest.mark.compiled
@pytest.mark.parametrize("columns, places", [(256, 1), (128, 2)])
def test_scales_are_copied_to_tensor_memory(columns, places):
    """Once a stage: of A one block, of B one for 128 columns; and four products."""
    inputs = bmm_mxfp8.make_inputs("square_1024", 1, "float8_e4m3fn", "cpu")
    with compiling_for(100):
        (config,) = [
            one
            for one in VARIANT.tunable.candidates(*inputs)
            if one["BLOCK_N"] == columns
        ]
    assert config["PLACES"] == places
    (launch,) = compiler.launches_of(VARIANT.with_config(config), inputs, 100)
    (facts,) = compiler.read([launch])
    assert (
        launch.ptx.count("tcgen05.cp.cta_group::1.warpx4.32x128b") == 1 + columns // 128
    )
    assert launch.ptx.count("kind::mxf8f6f4.block_scale.scale_vec::1X") == 4
    (taken,) = re.findall(r"tcgen05\.alloc\S+ \[\S+\], (\d+)", launch.ptx)
    assert int(taken) == 512
    assert (facts.stack_bytes, facts.spills, facts.warp_fault) == (0, 0, None)
    assert facts.threads == 256 and facts.shared_bytes <= 227 * 1024


@compiles
@pytest.mark.compiled
@pytest.mark.parametrize("columns", (256, 128))
@pytest.mark.parametrize("schedule", (LATE, EARLY, SHUFFLED))
def test_each_tile_of_a_program_is_written(columns, schedule, monkeypatch):
    """Two programs have many tiles each, of three and more stages in turns."""
    module = importlib.import_module("batchline.kernels.bmm_mxfp8.gluon_block_scaled")
    monkeypatch.setattr(module, "multiprocessors", lambda device: 2)
    variant = VARIANT.with_config(module._config(columns, KNOWN[100]))
    for probe in ("aligned_tiles", "aligned_shared_b"):
        inputs = given(probe)
        call = emulate_call(
            variant,
            inputs,
            100,
            lambda launch, memory: execute(launch, memory, schedule),
        )
        ((launch, execution),) = call.launches
        assert launch.grid == (2, 1, 1) and execution.findings == ()
        check_outputs(call.returned, inputs, expect(bmm_mxfp8, inputs), probe)
