"""What products of bf16 parts leave out, in exact arithmetic on the CPU: the stated
bounds hold, and are nearly met. And what those in flight promise of their compiled code.
"""

import importlib
import re

import pytest
import torch

from batchline.bench.measure.checking.check import (
    check_outputs,
    expect,
    held_to,
)
from batchline.bench.measure.compiled import compiler, sass
from batchline.bench.measure.emulated.assembler import remarks
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.execution import (
    EARLY,
    LATE,
    SHUFFLED,
    execute,
)
from batchline.kernels.bmm import bmm, reference, stored
from batchline.kernels.bmm._split_bf16 import split_tolerance
from batchline.kernels.draw import Draw

LEFT_OUT = {3: 2.0**-15, 6: 2.0**-24}
STEPS = torch.arange(-4, 5)
# Powers of two and neighbours, and numbers that lie halfway between those of 8 and of
# 16 bits.
HARD = torch.unique(
    torch.cat(
        [
            1 + high * 2.0**-8 + middle * 2.0**-17 + STEPS * 2.0**-23
            for high in STEPS
            for middle in STEPS
        ]
    ).float()
)


def _parts(x):
    high = x.bfloat16().float()
    middle = (x - high).bfloat16().float()
    return [
        part.double() for part in (high, middle, (x - high - middle).bfloat16().float())
    ]


def _product(a, b, products):
    """The kept products of parts, exact but for fp64's rounding."""
    most = {3: 1, 6: 2}[products]
    return sum(
        left @ right
        for i, left in enumerate(_parts(a))
        for j, right in enumerate(_parts(b))
        if i + j <= most
    )


@pytest.mark.parametrize("products", LEFT_OUT)
def test_what_is_left_out_of_one_product(products):
    a, b = HARD[None, :, None], HARD[None, None, :]
    share = (_product(a, b, products) - reference(a, b)).abs() / (
        LEFT_OUT[products] * reference(a, b)
    )
    assert 0.9 < float(share.max()) <= 1.01


def test_three_parts_are_the_number():
    x = torch.cat([HARD, torch.rand(10_000) * 2 - 1])
    assert torch.equal(sum(_parts(x)), x.double())


@pytest.mark.parametrize("k", (1, 16, 256, 4096))
@pytest.mark.parametrize("products", LEFT_OUT)
def test_the_declared_tolerance_holds_it(products, k):
    generator = torch.Generator().manual_seed(k)
    a, b = (
        torch.rand(1, 24, k, generator=generator) * 2 - 1,
        torch.rand(1, k, 24, generator=generator) * 2 - 1,
    )
    c = reference(a, b)
    difference = (_product(a, b, products) - c).abs()
    assert (difference <= split_tolerance(LEFT_OUT[products])(c, a, b)).all()
    assert bool((difference <= bmm.tolerance(c, a, b)).all()) == (
        products == 6 or k >= 256
    )


IN_FLIGHT = ("gluon_3xbf16", "gluon_6xbf16")
compiled_only = pytest.mark.skipif(
    bool(compiler.why_cannot_compile("triton")), reason="needs Triton's compiler"
)


def _loop_of_products(listing):
    """The instructions of the loop that multiplies and stores nothing, in their order."""
    instructions = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", listing)
    places = [int(address, 16) for address, _ in instructions]
    loops = []
    for number, (_, text) in enumerate(instructions):
        back = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if back and int(back.group(1), 16) in places[: number + 1]:
            first = places.index(int(back.group(1), 16))
            body = [text for _, text in instructions[first : number + 1]]
            opcodes = " ".join(body)
            if "HGMMA" in opcodes and "STG" not in opcodes:
                loops.append(body)
    (loop,) = loops
    return loop


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize(
    "name, layout",
    [
        ("gluon_3xbf16", "nt"),
        ("gluon_6xbf16", "tn"),
        *(
            pytest.param(name, layout, marks=pytest.mark.slow)
            for name, layouts in (
                ("gluon_3xbf16", ("nn", "tn")),
                ("gluon_6xbf16", ("nn", "nt")),
            )
            for layout in layouts
        ),
    ],
)
def test_a_step_is_split_while_the_products_of_the_one_before_are_in_flight(
    name, layout
):
    inputs = stored(Draw(torch.float32, "cpu", 0), layout, 16, 16, 512, 1024, 512)
    (launch,) = compiler.launches_of(bmm.variants[name], inputs, 90)
    (facts,) = compiler.read([launch])
    assert (facts.matrix_instruction, facts.spills) == ("wgmma.mma_async", 0)
    assert facts.threads == 256
    assert remarks(launch.ptx, 90) == ()  # no wgmma is serialised
    loop = _loop_of_products(sass.listing(launch.cubin, 90))
    (wait,) = [place for place, text in enumerate(loop) if "DEPBAR" in text]
    # The loop may begin anywhere: turn it, so that it ends with the wait.
    turned = loop[wait + 1 :] + loop[: wait + 1]
    issued = max(place for place, text in enumerate(turned) if "HGMMA" in text)
    splits = [place for place, text in enumerate(turned) if "FMNMX" in text]
    assert len(splits) == 32 and min(splits) > issued


def _on_rows_of_16_bytes(operand):
    """The same numbers, in rows that TMA can read."""
    rows, columns = operand.shape[1:]
    wider = operand.new_zeros(operand.shape[0], rows, -(-columns // 4) * 4)
    wider[:, :, :columns] = operand
    return wider[:, :, :columns]


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize(
    "probe", ("ragged", "large", "subnormal", "nan", "infinite", "returning_sums")
)
@pytest.mark.parametrize("name", IN_FLIGHT)
def test_numbers_that_are_hard_to_split(name, probe):
    inputs = tuple(
        _on_rows_of_16_bytes(operand)
        for operand in bmm.probes[probe](torch.float32, "cpu", 0)
    )
    _require_right(bmm.variants[name], inputs, LATE)


@pytest.mark.compiled
@compiled_only
@pytest.mark.parametrize("layout", ("nn", "nt", "tn"))
@pytest.mark.parametrize("schedule", (LATE, EARLY, SHUFFLED))
@pytest.mark.parametrize("name", IN_FLIGHT)
def test_stages_and_places_are_taken_in_turn(name, schedule, layout, monkeypatch):
    """Seven steps of 128x128 tiles: each of three stages is filled again."""
    module = importlib.import_module("batchline.kernels.bmm._split_in_flight")
    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    inputs = stored(Draw(torch.float32, "cpu", 0), layout, 1, 1, 136, 140, 200)
    _require_right(bmm.variants[name], inputs, schedule)


def _require_right(variant, inputs, schedule):
    call = emulate_call(
        variant, inputs, 90, lambda launch, memory: execute(launch, memory, schedule)
    )
    ((_, execution),) = call.launches
    assert execution.findings == ()
    expected = held_to(variant, inputs, expect(variant.op, inputs))
    check_outputs(call.returned, inputs, expected, variant.id)
