"""Mutants of compiled kernels: what is changed, and that what it changes is noticed."""

from dataclasses import dataclass

import pytest

from batchline import kernels
from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.emulated import mutant_table
from batchline.bench.measure.emulator import mutants, ptx
from batchline.bench.measure.emulator.launch import LaunchRefused
from batchline.bench.measure.emulator.subjects import Subject
from batchline.tests.emulated import text_of

LEAST = 0.95  # of the mutants that change behaviour
compiled = pytest.mark.skipif(
    bool(compiler.why_cannot_compile("triton")), reason="needs Triton's compiler"
)
SAMPLE = (
    Subject("bmm/triton_tiled", "float16", "aligned_nt", 80),
    Subject("bmm/triton_tiled", "float16", "aligned_tiles", 90),
    Subject("grad_stats/triton_one_read", "float32", "ragged", 90),
)


@dataclass(frozen=True)
class Launch:
    """Of a launch all that is asked for."""

    ptx: str


def made(body):
    return mutants.mutants(text_of(body, [0]), "k")


@pytest.mark.parametrize(
    "line, expected",
    [
        ("bar.sync 0;", {("barrier", "taken out")}),
        (
            "cp.async.wait_group 0x1;",
            {("copy wait", "taken out"), ("copy wait", "for one group less")},
        ),
        (
            "@%p1 ld.global.b32 { %r1 }, [ %d1 + 0 ];",
            {("mask", "dropped"), ("mask", "negated")},
        ),
        (
            "cp.async.cg.shared.global [ %r1 + 0 ], [ %d1 + 0 ], 0x10, %r2;",
            {("mask", "dropped")},
        ),
        (
            "mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2;",
            {("mbarrier wait", "taken out"), ("parity", "flipped")},
        ),
        (
            "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 512;",
            {
                ("arrival", "taken out"),
                ("arrival", "of 16 bytes more"),
                ("arrival", "of 16 bytes less"),
            },
        ),
        ("fence.proxy.async.shared::cta;", {("proxy fence", "taken out")}),
        ("tcgen05.wait::ld.sync.aligned;", {("product wait", "taken out")}),
        (
            "@%p1 tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%r1];",
            {("commit", "taken out")},
        ),
        (
            "@%p1 tcgen05.cp.cta_group::1.warpx4.32x128b [%r1], %rd1;",
            {("scale copy", "taken out")},
        ),
        ("add.u32 %r1, %r2, %r3;", set()),
    ],
)
def test_what_is_changed_of_an_instruction(line, expected):
    assert {(one.kind, one.change) for one in made(line)} == expected


def test_each_mutant_can_be_read_and_differs_in_its_line_only():
    body = """
    W: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2;
    @!%p1 bra W;
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2;
    @%p1 st.global.u32 [%d1], %r1;
    cp.async.bulk.wait_group.read 0;
    """
    text = text_of(body, [0])
    for one in mutants.mutants(text, "k"):
        ptx.parse(one.ptx)
        before, after = text.split("\n"), one.ptx.split("\n")
        changed = [
            place for place in range(len(before)) if before[place] != after[place]
        ]
        assert changed == [one.line - 1]


@pytest.mark.parametrize(
    "product",
    [
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
        "{%f0}, %rd7, %rd8, %p1, 1, 1;",
        "tcgen05.mma.cta_group::1.kind::f16 [%r0], %rd7, %rd8, %r1, %p1;",
        "tcgen05.cp.cta_group::1.warpx4.32x128b [%r0], %rd7;",
    ],
)
def test_a_descriptor_is_changed_in_each_of_its_fields(product):
    body = f"or.b64 %rd7, %rd17, 4611686293305294848;\n{product}"
    every = [one for one in made(body) if one.kind == "descriptor"]
    found = {one.change.rsplit(" ", 3)[0] for one in every}
    assert found == {
        "start",
        "leading offset",
        "stride offset",
        "base offset",
        "swizzle",
    }


def test_a_scaled_product_takes_another_byte_of_its_scales():
    """A's byte 3 is in bits 29 and 30 of the instruction's descriptor, B's 1 in 4, 5."""
    body = f"""
    mov.b32 %r7, {3 << 29 | 1 << 4 | 1 << 27};
    tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.scale_vec::1X [%r1 + 0], %rd1, %rd2, %r7, [%r2], [%r3], %p1;
    """
    scales = [one for one in made(body) if one.kind == "scale"]
    assert [one.change for one in scales] == ["A's byte 3 → 0", "B's byte 1 → 2"]
    assert f"%r7, {1 << 4 | 1 << 27};" in scales[0].ptx
    assert f"%r7, {3 << 29 | 2 << 4 | 1 << 27};" in scales[1].ptx


@pytest.mark.parametrize(
    "before, after, is_idle",
    [
        ("st.shared.u32 [%m], %t;", "ld.shared.u32 %r0, [%m];", False),
        ("ld.shared.u32 %r0, [%m];", "st.shared.u32 [%m], %t;", False),
        ("ld.shared.u32 %r0, [%m];", "ld.shared.u32 %r1, [%m];", True),
        ("st.shared.u32 [%m], %t; bar.sync 0;", "ld.shared.u32 %r0, [%m];", True),
        ("L: st.shared.u32 [%m], %t;", "@%p0 bra L;", False),
        ("ld.global.u32 %r0, [%d0];", "st.shared.u32 [%m], %t;", True),
    ],
)
def test_a_barrier_is_idle_if_nothing_conflicts_up_to_the_next(before, after, is_idle):
    text = text_of(f"{before}\nbar.sync 0; // this\n{after}", [0])
    line = 1 + next(
        number for number, one in enumerate(text.split("\n")) if "// this" in one
    )
    kernel = ptx.parse(text).kernels["k"]
    assert mutants.is_idle(kernel, line, False) is is_idle


@pytest.mark.parametrize(
    "raised, expected",
    [
        (IndexError("out of range"), mutants._Broke),
        (LaunchRefused("too many threads"), LaunchRefused),
    ],
)
def test_what_breaks_the_emulator_is_told_from_what_is_refused(
    monkeypatch, raised, expected
):
    def fail(launch, memory, schedule):
        raise raised

    monkeypatch.setattr(mutants.execution, "execute", fail)
    execute = mutants._with("as it was", "mutated", [])
    with pytest.raises(expected):
        execute(Launch("as it was"), None, mutants.LATE)


@compiled
@pytest.mark.parametrize("subject", SAMPLE, ids=str)
def test_a_sample_is_noticed(subject):
    found = list(mutants.judged(subject, most=1))
    assert [one for one in found if one.status == mutants.NOTICED]
    assert not [one for one in found if one.status == mutants.MISSED]


@compiled
@pytest.mark.slow
def test_of_every_kind_enough_is_noticed_in_all_variants():
    parts = [
        mutant_table.part_of(subject, mutants.judged(subject, most=4))
        for subject in mutants.chosen(kernels.ops.values())
    ]
    shares = mutant_table.Table(4, tuple(parts)).shares
    assert not [one for one in shares if one.share is not None and one.share < LEAST]
