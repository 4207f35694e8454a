"""An instruction of a whole warp is refused where a part of the warp may run it, by
handwritten PTX and SASS.
"""

import pytest

from batchline.bench.commands import codegen as command
from batchline.bench.measure.compiled import converged
from batchline.bench.measure.compiled.converged import LaneValues, functions
from batchline.bench.verdicts.compiled_changes import warp_faults
from tests.test_records import compiled_row

PTX = """
.visible .entry kernel(.param .u64 out)
{{
    .reg .pred %p<3>;
    ld.param.u32 %r1, [out];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    .loc 1 7 4
    {decide}
    {body}
    ret;
}}
"""
MMA = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1, %f2}, {%r1}, {%r1}, {%f1, %f2};"
SASS = "    /*0000*/   HMMA.16816.F32 R4, R12, R10, R4 ;\n    /*0010*/   EXIT ;\n"
BY_LANE = (
    "setp.lt.s32 %p1, %r2, %r1;",
    "and.b32 %r4, %r2, 1; setp.eq.s32 %p1, %r4, 0;",
    "shl.b32 %r4, %r2, 2; ld.global.u32 %r5, [%r4]; setp.eq.s32 %p1, %r5, 0;",
)
BY_WARP = (
    "setp.lt.s32 %p1, %r3, %r1;",
    "shr.u32 %r4, %r2, 5; setp.eq.s32 %p1, %r4, 0;",
    "and.b32 %r4, %r2, 96; setp.eq.s32 %p1, %r4, 0;",
    "ld.global.u32 %r5, [%r3]; setp.eq.s32 %p1, %r5, 0;",
    "shfl.sync.idx.b32 %r4, %r2, 0, 31, -1; setp.eq.s32 %p1, %r4, 0;",
)
UNDER = {
    "skipped": f"@%p1 bra END;\n    {MMA}\nEND:",
    "predicated": f"@%p1 {MMA}",
    "left": f"@%p1 ret;\n    {MMA}",
    "in a loop": f"TOP:\n    {MMA}\n    @%p1 bra TOP;",
}


def _listing(*instructions):
    return "".join(
        f"        /*{16 * number:04x}*/  {text} ;\n"
        for number, text in enumerate(instructions)
    )


@pytest.mark.parametrize("body", UNDER.values(), ids=UNDER)
@pytest.mark.parametrize("decide", BY_LANE)
def test_a_product_that_lanes_decide_over_is_refused(decide, body):
    said = converged.fault(PTX.format(decide=decide, body=body), SASS)
    assert said.startswith("PTX line 1") and "mma.sync" in said and "may " in said


@pytest.mark.parametrize("body", [UNDER["skipped"], UNDER["left"], UNDER["predicated"]])
@pytest.mark.parametrize("decide", BY_WARP)
def test_one_that_whole_warps_decide_over_is_not(decide, body):
    assert converged.fault(PTX.format(decide=decide, body=body), SASS) is None


def test_a_value_that_a_part_of_the_lanes_wrote_differs():
    body = (
        "mov.u32 %r6, 1;\n setp.lt.s32 %p1, %r2, %r1;\n @%p1 bra END;\n mov.u32 %r6, 2;\n"
        "END:\n setp.eq.s32 %p2, %r6, 1;"
    )
    (blocks,) = functions(PTX.format(decide="", body=body))
    assert LaneValues(blocks).differs("%p2") and not LaneValues(blocks).differs("%r1")


@pytest.mark.parametrize(
    "instructions, said",
    [
        (
            ("@P0 HMMA.16816.F32 R4, R12, R10, R4", "EXIT"),
            "SASS 0x0, @P0 HMMA.16816.F32 R4, R12, R10, R4: it is pred",
        ),
        (("@!P3 HMMA.16816.F32 R4, R12, R10, R4", "EXIT"), "it is predicated"),
        (
            (
                "BSSY B0, 0x30",
                "@P0 BRA 0x30",
                "HMMA.16816.F32 R4, R12, R10, R4",
                "BSYNC B0",
                "EXIT",
            ),
            "BSSY at 0x0",
        ),
        (
            (
                "BSSY B0, 0x30",
                "HMMA.16816.F32 R4, R12, R10, R4",
                "@P0 BRA 0x30",
                "BSYNC B0",
                "EXIT",
            ),
            None,
        ),
        (
            ("HMMA.16816.F32 R4, R12, R10, R4", "@P0 BRA 0x0", "EXIT"),
            "mma.sync is in 0 loops in the PTX, in 1 in the SASS",
        ),
        (("@UP0 HMMA.16816.F32 R4, R12, R10, R4", "EXIT"), None),
        (("HMMA.16816.F32 R4, R12, R10, R4", "BRA 0x30", "BRA 0x0", "EXIT"), None),
    ],
)
def test_what_the_assembler_did(instructions, said):
    found = converged.fault(PTX.format(decide="", body=MMA), _listing(*instructions))
    assert found is None if said is None else said in found


def test_a_product_taken_out_of_its_loop_is_refused_and_a_shuffle_dropped_is_not():
    loop = "TOP:\n    {} \n    setp.lt.s32 %p1, %r3, %r1;\n    @%p1 bra TOP;"
    hoisted = _listing(
        "HMMA.16816.F32 R4, R12, R10, R4", "IADD3 R1, R1, 1, RZ", "@P0 BRA 0x10", "EXIT"
    )
    assert converged.fault(PTX.format(decide="", body=loop.format(MMA)), hoisted) == (
        "mma.sync is in 1 loops in the PTX, in 0 in the SASS"
    )
    shuffle = "shfl.sync.idx.b32 %r4, %r3, 0, 31, -1;"
    assert (
        converged.fault(
            PTX.format(decide="", body=loop.format(shuffle)),
            _listing("@P0 BRA 0x0", "EXIT"),
        )
        is None
    )


def test_the_shuffle_by_which_the_assembler_hands_out_an_atomics_result_is_its_own():
    ptx = PTX.format(decide="", body="shfl.sync.idx.b32 %r4, %r2, 0, 31, -1;")
    code = [
        "BSSY B2, 0x60",
        "@P1 BRA 0x50",
        "@P0 ATOMG.E.ADD.STRONG.GPU PT, R7, desc[UR20][R4.64+0x4], R7",
        "{} PT, R6, {}, R8, 0x1f",
        "NOP",
        "BSYNC B2",
        "EXIT",
    ]

    def said(shuffle, of):
        return converged.fault(
            ptx, _listing(*(text.format(shuffle, of) for text in code))
        )

    assert said("SHFL.IDX", "R7") is None
    for other in (("SHFL.IDX", "R9"), ("SHFL.BFLY", "R7")):
        assert "BSSY at 0x0" in said(*other)


def test_a_label_is_known_within_its_braces():
    """Triton waits for an mbarrier by a loop in braces, whose label is always one."""
    wait = "{ .reg .pred %p2; WAIT: mov.pred %p2, 0; @!%p2 bra.uni WAIT; }"
    body = f"{wait}\n    TOP:\n    {MMA}\n    {wait}\n    @%p1 bra TOP;"
    (blocks,) = functions(PTX.format(decide=BY_WARP[0], body=body))
    depths = converged.loop_depths([block.followers for block in blocks])
    (depth,) = [
        depth
        for block, depth in zip(blocks, depths)
        if any(one.name.startswith("mma") for one in block.statements)
    ]
    assert depth == 1


def test_the_command_says_which_kernel_and_line(capsys):
    rows = [compiled_row(), compiled_row(warp_fault="PTX line 12, mma.sync: may part")]
    assert warp_faults(rows) == [
        "bmm/triton_tiled float16 sm_90 tiny_16/B4, _kernel (BLOCK_M=128, 8 warps, 3 stages): "
        "PTX line 12, mma.sync: may part"
    ]
    assert command._refused(warp_faults(rows)) == 1
    assert (
        "_kernel (BLOCK_M=128, 8 warps, 3 stages): PTX line 12"
        in capsys.readouterr().err
    )
