"""The hot loop of a listing: the innermost with the tensor cores, each instruction with
what it is for.
"""

import pytest

from batchline import kernels
from batchline.bench.measure.compiled import sass
from batchline.bench.measure.compiled.sass import instructions
from batchline.bench.measure.compiled.static_facts import machine_code

LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
        /*0020*/                   FFMA R0, R4, R5, R0 ;
        /*0030*/               @P0 BRA 0x10 ;
        /*0040*/                   LDSM.16.M88.4 R8, [R3] ;
        /*0050*/                   HMMA.16816.F32 R12, R8, R9, R12 ;
        /*0060*/              @!PT LDG.E R9, [R2.64] ;
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/                   UTMALDG.2D [UR8], [UR4] ;
        /*0090*/              @!P1 BRA 0x40 ;
        /*00a0*/               @P2 BRA 0x10 ;
        /*00b0*/                   STG.E.64 [R2.64], R12 ;
        /*00c0*/                   STL [R1], R9 ;
        /*00d0*/                   IMAD.MOV.U32 R1, RZ, RZ, R2 ;
        /*00e0*/                   EXIT ;
        /*00f0*/                   BRA 0xf0 ;
"""


def test_the_loop_and_its_work():
    code = instructions(LISTING)
    loop = sass.hot_loop(code)
    assert [one.address for one in loop] == [0x40, 0x50, 0x70, 0x80, 0x90]
    assert [one.kind for one in loop] == [
        "shared load, matrices",
        "tensor core",
        "barrier or wait",
        "global load, TMA",
        "branch",
    ]
    assert dict(sass.work(loop)) == {one.kind: 1 for one in loop}
    kinds = {one.address: one.kind for one in code}
    assert (
        kinds[0x00] == "constant load"
        and kinds[0x10] == "global load, 16 B"
        and kinds[0x20] == "multiply or add"
    )
    assert (
        kinds[0xB0] == "global store, 8 B"
        and kinds[0xC0] == "spill"
        and kinds[0xD0] == sass.OTHER
    )
    assert 0x60 not in kinds  # what is predicated on never


@pytest.mark.parametrize(
    "lines, first",
    [
        (
            "/*0000*/ FADD R0, R0, R1 ;\n /*0010*/ EXIT ;\n /*0020*/ BRA 0x20 ;",
            None,
        ),  # the assembler's last jump is none
        (
            "/*0000*/ FADD R0, R0, R1 ;\n /*0010*/ @P0 BRA 0x0 ;\n /*0020*/ LDG.E R1, [R2] ;\n /*0030*/ @P0 BRA 0x20 ;",
            0x20,
        ),
        (
            "/*0000*/ FADD R0, R0, R1 ;\n /*0010*/ FADD R0, R0, R1 ;\n"
            " /*0020*/ @P0 BRA 0x0 ;\n /*0030*/ FADD R1, R1, R1 ;\n"
            " /*0040*/ BRA 0x30 ;",
            0x0,
        ),
    ],
)
def test_which_loop(lines, first):
    loop = sass.hot_loop(
        instructions("\n".join(f" {line.strip()}" for line in lines.splitlines()))
    )
    assert (loop[0].address if loop else None) == first


def test_a_real_kernels_loop_multiplies():
    variant = kernels.ops["bmm"].variants["triton_tiled"]
    if variant.why_not_here("cuda") and "can't be imported" in variant.why_not_here(
        "cuda"
    ):
        pytest.skip(variant.why_not_here("cuda"))
    ((compiled, code),) = machine_code(variant, "square_256", "float16", 4, 80)
    loop = sass.hot_loop(code)
    assert 0 < len(loop) < len(code) and compiled.matrix > 0
    assert sum(one.kind == sass.TENSOR for one in loop) >= compiled.matrix / 4
    assert any(one.kind.startswith("global load") for one in loop)
    assert sum(one.kind == sass.TENSOR for one in code) == compiled.matrix


def test_what_has_no_gpu_code_says_so():
    with pytest.raises(
        ValueError,
        match="bmm/torch_bmm has no GPU code here: torch is not a GPU compiler",
    ):
        machine_code(
            kernels.ops["bmm"].variants["torch_bmm"], "square_256", "float16", 4, 90
        )
    with pytest.raises(
        ValueError, match="does not take this problem: float64 is not among its dtypes"
    ):
        machine_code(
            kernels.ops["bmm"].variants["triton_tiled"], "square_256", "float64", 4, 90
        )
