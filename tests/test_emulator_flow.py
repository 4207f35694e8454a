"""Control flow, instructions of a whole warp, loads and stores of all widths, atomics:
whole kernels against numbers that NumPy works out.
"""

import numpy as np
import pytest

from batchline.bench.measure.emulator.execution import LATE, SHUFFLED
from batchline.bench.measure.emulator.ptx import UnknownOpcode
from batchline.tests.emulated import buffer, faults, run, twins

LANE = np.arange(32)
FULL = "0xffffffff"


def outcome(body, block=32, grid=1, dtype=np.uint32, arguments=(), **settings):
    """What a kernel writes to its first argument, a word for each of 256 threads."""
    out = buffer(256, dtype)
    done = run(body, out, *arguments, block=block, grid=grid, **settings)
    assert not done.findings, done.findings
    return out


def answer(body, lanes=32, **settings):
    """The words that the lanes have left in %r9."""
    return outcome(f"{body}\nst.global.u32 [%g0], %r9;", **settings)[:lanes]


# --- control flow -------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LATE, SHUFFLED])
def test_nested_branches_come_together_again(schedule):
    body = """
    mov.u32 %r9, 0;
    setp.lt.u32 %p0, %l, 20;
    @!%p0 bra ELSE;
    setp.lt.u32 %p1, %l, 7;
    @%p1 bra INNER;
    add.u32 %r9, %r9, 100;
    bra JOIN;
    INNER:
    add.u32 %r9, %r9, 10;
    JOIN:
    add.u32 %r9, %r9, 1;
    bra END;
    ELSE:
    add.u32 %r9, %r9, 1000;
    END:
    activemask.b32 %r1;
    popc.b32 %r1, %r1;
    mad.lo.u32 %r9, %r1, 10000, %r9;
    """
    expected = np.where(LANE < 7, 11, np.where(LANE < 20, 101, 1000)) + 320000
    assert answer(body, schedule=schedule).tolist() == expected.tolist()


@pytest.mark.parametrize("schedule", [LATE, SHUFFLED])
def test_lanes_go_round_a_loop_as_often_as_each_wants(schedule):
    body = """
    mov.u32 %r9, 0;
    mov.u32 %r1, 0;
    LOOP:
    setp.gt.u32 %p0, %r1, %l;
    @%p0 bra DONE;
    mov.u32 %r2, 0;
    INNER:
    add.u32 %r9, %r9, 1;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p1, %r2, %r1;
    @%p1 bra INNER;
    add.u32 %r1, %r1, 1;
    bra LOOP;
    DONE:
    bar.warp.sync -1;
    """
    expected = [sum(max(1, step) for step in range(lane + 1)) for lane in LANE]
    assert answer(body, schedule=schedule).tolist() == expected


def branch_by_index(index):
    return f"""
    {index}
    TARGETS: .branchtargets A, B, A, C;
    brx.idx %r1, TARGETS;
    A: mov.u32 %r9, 1;
    bra JOIN;
    B: mov.u32 %r9, 2;
    bra JOIN;
    C: mov.u32 %r9, 3;
    JOIN:
    activemask.b32 %r2;
    popc.b32 %r2, %r2;
    mad.lo.u32 %r9, %r2, 100, %r9;
    """


@pytest.mark.parametrize("schedule", [LATE, SHUFFLED])
def test_lanes_branch_by_an_index_of_their_own(schedule):
    body = branch_by_index("and.b32 %r1, %l, 3;")
    expected = [3200 + [1, 2, 1, 3][lane % 4] for lane in LANE]
    assert answer(body, schedule=schedule).tolist() == expected


def test_an_index_beyond_the_list_of_targets_hangs():
    done = run(branch_by_index("mov.u32 %r1, 4;"), most_steps=1000)
    assert {one.word for one in done.findings} == {"hang"}


def test_a_guarded_branch_by_an_index_is_refused():
    body = branch_by_index("mov.u32 %r1, 0;").replace("brx", "@%p0 brx")
    with pytest.raises(UnknownOpcode, match="brx.idx"):
        run(body)


def test_halves_of_a_warp_exchange_each_for_itself():
    body = """
    setp.lt.u32 %p0, %l, 16;
    selp.b32 %r5, 0xffff, 0xffff0000, %p0;
    redux.sync.add.u32 %r1, %l, %r5;
    setp.ge.u32 %p1, %l, 8;
    vote.sync.ballot.b32 %r2, %p1, %r5;
    shr.u32 %r3, %l, 1;
    match.any.sync.b32 %r3, %r3, %r5;
    shfl.sync.bfly.b32 %r4, %l, 15, 31, %r5;
    add.u32 %r9, %r1, %r2;
    xor.b32 %r9, %r9, %r3;
    mad.lo.u32 %r9, %r4, 7, %r9;
    """
    expected = [
        (sum(range(16)) + (0xFF00 if lane < 16 else 16 * 16 + 0xFFFF0000))
        ^ 3 << (lane & ~1)
        for lane in LANE
    ]
    expected = [
        (one + 7 * (lane ^ 15)) & 0xFFFFFFFF for lane, one in enumerate(expected)
    ]
    assert answer(body).tolist() == expected


@pytest.mark.parametrize("kind, one", [("f16", 0x3C00), ("bf16", 0x3F80)])
def test_atomics_on_one_number_of_16_bits(kind, one):
    body = f"""
    mov.b16 %h0, {one};
    atom.global.add.noftz.{kind} %h1, [%a1+2], %h0;
    mov.b16 %h2, 0;
    mov.b16 %h3, 9;
    atom.global.cas.b16 %h4, [%a1+4], %h2, %h3;
    cvt.u32.u16 %r9, %h4;
    """
    numbers = buffer(8, np.uint16)
    found = answer(body, arguments=(numbers,))
    assert found.tolist() == [0] + 31 * [9]
    thirty_two = {"f16": 0x5000, "bf16": 0x4200}[kind]
    assert numbers.tolist() == [0, thirty_two, 9, 0, 0, 0, 0, 0]


def test_an_atomic_on_a_vector():
    numbers = buffer(8, np.float32)
    numbers[:] = np.arange(8)
    body = """
    mov.f32 %f4, 0f3F800000;
    mov.f32 %f5, 0f40000000;
    setp.lt.u32 %p0, %l, 4;
    @%p0 atom.global.add.v2.f32 {%f0, %f1}, [%a1+8], {%f4, %f5};
    @%p0 red.global.add.v4.f32 [%a1+16], {%f4, %f4, %f5, %f5};
    add.f32 %f0, %f0, %f1;
    cvt.rzi.u32.f32 %r9, %f0;
    """
    found = answer(body, lanes=4, arguments=(numbers,))
    assert found.tolist() == [5, 8, 11, 14]
    assert numbers.tolist() == [0, 1, 6, 11, 8, 9, 14, 15]


def test_an_atomic_on_a_vector_is_aligned_to_all_of_it():
    done = run("red.global.add.v2.f32 [%a0+4], {%f0, %f0};", buffer(8))
    assert faults(done) == {"misaligned"}


def test_a_trap_is_found_and_the_lanes_end():
    out = buffer(32)
    body = "setp.eq.u32 %p0, %l, {}; @%p0 trap; st.global.u32 [%g0], 1;"
    assert faults(run(body.format(3), out)) == {"trap"}
    assert out.tolist() == [int(lane != 3) for lane in range(32)]
    assert not run(body.format(33), out).findings


def test_two_blocks_that_write_a_variable_of_the_module():
    module = ".visible .global .align 4 .u32 total;"
    wrong, right = twins(
        "setp.eq.u32 %p0, %t, 0; @%p0 <st||red>.global<||.add>.u32 [total], %n0;"
    )
    wrong, right = (f"mov.u32 %n0, %ctaid.x; {body}" for body in (wrong, right))
    assert faults(run(wrong, grid=2, module=module)) == {"global-race"}
    assert not run(right, grid=2, module=module).findings


def test_an_atomic_exchange_of_16_bits_is_refused():
    with pytest.raises(UnknownOpcode, match="atom.global.exch.b16"):
        run("atom.global.exch.b16 %h1, [%a0], %h0;", buffer(8))


def test_where_a_generic_address_leads_to():
    body = """
    cvt.u64.u32 %d0, %s;
    cvta.shared.u64 %d0, %d0;
    isspacep.shared %p0, %d0;
    isspacep.global %p1, %d0;
    isspacep.local %p2, %d0;
    isspacep.shared::cta %p3, %a0;
    isspacep.global %p4, %a0;
    selp.u32 %r9, 1, 0, %p0;
    @%p1 add.u32 %r9, %r9, 10;
    @%p2 add.u32 %r9, %r9, 100;
    @%p3 add.u32 %r9, %r9, 1000;
    @%p4 add.u32 %r9, %r9, 10000;
    """
    assert answer(body).tolist() == [10001] * 32


def test_lanes_whose_generic_addresses_lead_to_different_memories():
    body = """
    st.shared.u32 [%m], %l;
    cvt.u64.u32 %d0, %m;
    cvta.shared.u64 %d0, %d0;
    and.b32 %r1, %l, 1;
    setp.eq.u32 %p0, %r1, 0;
    selp.b64 %d1, %d0, %g1, %p0;
    ld.u32 %r2, [%d1];
    add.u32 %r2, %r2, 99;
    st.u32 [%d1], %r2;
    atom.add.u32 %r2, [%d1], 1;
    ld.u32 %r9, [%d1];
    """
    numbers = buffer(32)
    numbers[:] = LANE * 1000
    expected = np.where(LANE % 2, LANE * 1000, LANE) + 100
    assert answer(body, arguments=(numbers,)).tolist() == expected.tolist()
    assert numbers[1::2].tolist() == expected[1::2].tolist()


def test_a_block_alone_in_its_cluster_finds_its_own_shared_memory():
    body = """
    st.shared::cluster.u32 [%m], %l;
    ld.shared::cluster.u32 %r9, [%m];
    atom.shared::cluster.add.u32 %r8, [%m], 1;
    """
    assert answer(body).tolist() == LANE.tolist()


def test_lanes_that_end_early_are_not_waited_for():
    body = """
    setp.ge.u32 %p0, %l, 5;
    @%p0 ret;
    vote.sync.ballot.b32 %r9, %p0, 0x1f;
    activemask.b32 %r9;
    """
    found = answer(body)
    assert found[:5].tolist() == [31] * 5 and not found[5:].any()


@pytest.mark.parametrize("schedule", [LATE, SHUFFLED])
def test_a_block_hangs_as_soon_as_its_warps_have_done_all_they_may(schedule):
    done = run("L: bra L;", block=256, schedule=schedule, most_steps=1000)
    assert {one.word for one in done.findings} == {"hang"}
    assert done.longest_block <= 2000


def test_a_block_that_ends_in_its_last_turn_does_not_hang():
    done = run("mov.u32 %r9, 0;", block=256, most_steps=70)
    assert not done.findings and done.longest_block == done.warp_instructions > 70


def test_guards_of_each_sign():
    body = """
    mov.u32 %r9, 1;
    setp.lt.u32 %p0, %l, 9;
    @%p0 add.u32 %r9, %r9, 10;
    @!%p0 add.u32 %r9, %r9, 100;
    """
    assert answer(body).tolist() == np.where(LANE < 9, 11, 101).tolist()


def test_the_last_warp_of_a_block_is_in_part_there():
    body = """
    activemask.b32 %r9;
    bar.sync 0;
    """
    found = answer(body, lanes=64, block=41)
    assert found[:32].tolist() == [0xFFFFFFFF] * 32
    assert found[32:41].tolist() == [0x1FF] * 9 and not found[41:].any()


def test_special_registers_of_every_axis():
    block, grid = (4, 3, 2), (2, 3, 2)
    body = """
    mov.u32 %r0, %tid.y; mad.lo.u32 %r0, %r0, 4, %t;
    mov.u32 %r1, %tid.z; mad.lo.u32 %r0, %r1, 12, %r0;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ctaid.y; mad.lo.u32 %r2, %r3, 2, %r2;
    mov.u32 %r3, %ctaid.z; mad.lo.u32 %r2, %r3, 6, %r2;
    mad.lo.u32 %r4, %r2, 24, %r0;
    mul.wide.u32 %d0, %r4, 4;
    add.s64 %d0, %d0, %a0;
    mov.u32 %r5, %ntid.x; mov.u32 %r6, %ntid.y; mov.u32 %r7, %ntid.z;
    mad.lo.u32 %r5, %r6, 10, %r5; mad.lo.u32 %r5, %r7, 100, %r5;
    mov.u32 %r6, %nctaid.x; mad.lo.u32 %r5, %r6, 1000, %r5;
    mov.u32 %r6, %nctaid.y; mad.lo.u32 %r5, %r6, 10000, %r5;
    mov.u32 %r6, %nctaid.z; mad.lo.u32 %r5, %r6, 100000, %r5;
    mov.u32 %r6, %laneid; mad.lo.u32 %r5, %r6, 1000000, %r5;
    st.global.u32 [%d0], %r5;
    """
    out = buffer(288)
    assert not run(body, out, grid=grid, block=block).findings
    expected = 232234 + 1000000 * (np.arange(288) % 24)
    assert out.tolist() == expected.tolist()


# --- the lanes of a warp ------------------------------------------------------------

SHUFFLES = {
    # mode, b, c: where a lane takes its value from, and whether that is in range
    "down": ("down", 3, 31, lambda lane: (lane + 3, lane + 3 < 32)),
    "up": ("up", 5, 0, lambda lane: (lane - 5, lane >= 5)),
    "bfly": ("bfly", 16, 31, lambda lane: (lane ^ 16, True)),
    "idx": ("idx", 7, 31, lambda lane: (7, True)),
    "down in eights": ("down", 3, 0x181F, lambda lane: (lane + 3, lane % 8 < 5)),
    "up in eights": ("up", 3, 0x1800, lambda lane: (lane - 3, lane % 8 >= 3)),
    "idx in fours": ("idx", 2, 0x1C1F, lambda lane: (lane // 4 * 4 + 2, True)),
    "bfly in fours, beyond": ("bfly", 4, 0x1C1F, lambda lane: (lane ^ 4, lane & 4)),
    "down clamped": ("down", 4, 10, lambda lane: (lane + 4, lane + 4 <= 10)),
    "idx clamped": ("idx", 20, 15, lambda lane: (20, False)),
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_shuffles(name):
    mode, b, c, reference = SHUFFLES[name]
    body = f"""
    mul.lo.u32 %r0, %l, 3;
    shfl.sync.{mode}.b32 %r9|%p0, %r0, {b}, {c}, {FULL};
    @%p0 add.u32 %r9, %r9, 1000;
    """
    expected = []
    for lane in range(32):
        source, is_valid = reference(lane)
        expected.append(3 * source + 1000 if is_valid else 3 * lane)
    assert answer(body).tolist() == expected


def test_votes():
    body = f"""
    setp.lt.u32 %p0, %l, 12;
    setp.lt.u32 %p1, %l, 99;
    vote.sync.all.pred %p2, %p1, {FULL};
    vote.sync.all.pred %p3, %p0, {FULL};
    vote.sync.any.pred %p4, %p0, {FULL};
    vote.sync.uni.pred %p5, %p0, {FULL};
    vote.sync.any.pred %p6, !%p1, {FULL};
    vote.sync.ballot.b32 %r0, %p0, {FULL};
    mov.u32 %r9, %r0;
    @%p2 add.u32 %r9, %r9, 0x10000;
    @%p3 add.u32 %r9, %r9, 0x20000;
    @%p4 add.u32 %r9, %r9, 0x40000;
    @%p5 add.u32 %r9, %r9, 0x80000;
    @%p6 add.u32 %r9, %r9, 0x100000;
    """
    assert answer(body).tolist() == [0x50FFF] * 32


def test_votes_of_some_lanes_count_these_only():
    body = """
    mov.u32 %r9, 0;
    setp.lt.u32 %p0, %l, 8;
    @%p0 bra SOME;
    bra END;
    SOME:
    setp.ne.u32 %p1, %l, 3;
    vote.sync.ballot.b32 %r9, %p1, 0xff;
    END:
    """
    assert answer(body).tolist() == [0xF7] * 8 + [0] * 24


def test_matches():
    body = f"""
    shr.u32 %r0, %l, 3;
    match.any.sync.b32 %r9, %r0, {FULL};
    match.all.sync.b32 %r1|%p0, %r0, {FULL};
    @%p0 mov.u32 %r9, 7;
    """
    expected = [0xFF << (lane // 8 * 8) for lane in range(32)]
    assert answer(body).tolist() == expected


REDUCTIONS = {
    "add.u32": lambda values: values.sum(dtype=np.uint32),
    "add.s32": lambda values: values.sum(dtype=np.uint32),
    "min.s32": lambda values: values.view(np.int32).min().view(np.uint32),
    "max.s32": lambda values: values.view(np.int32).max().view(np.uint32),
    "min.u32": lambda values: values.min(),
    "max.u32": lambda values: values.max(),
    "and.b32": np.bitwise_and.reduce,
    "or.b32": np.bitwise_or.reduce,
    "xor.b32": np.bitwise_xor.reduce,
}


@pytest.mark.parametrize("operation", REDUCTIONS)
def test_redux(operation):
    values = np.random.default_rng(1).integers(0, 2**32, 32, np.uint32)
    given = buffer(32)
    given[:] = values
    body = f"ld.global.u32 %r0, [%g1]; redux.sync.{operation} %r9, %r0, {FULL};"
    expected = int(REDUCTIONS[operation](values))
    assert answer(body, arguments=[given]).tolist() == [expected] * 32


def test_elect_chooses_one_lane():
    body = f"""
    mov.u32 %r9, 0;
    elect.sync %r0|%p0, {FULL};
    @%p0 mov.u32 %r9, 1;
    """
    assert answer(body).sum() == 1


@pytest.mark.parametrize("operation, expected", [("popc", 40), ("and", 0), ("or", 1)])
def test_reductions_of_a_barrier(operation, expected):
    if operation == "popc":
        asked = "barrier.cta.red.popc.aligned.u32 %r9, 0, %p0;"
    else:
        asked = f"bar.red.{operation}.pred %p1, 0, %p0; selp.u32 %r9, 1, 0, %p1;"
    body = f"setp.lt.u32 %p0, %t, 40; {asked}"
    assert answer(body, lanes=64, block=64).tolist() == [expected] * 64


# --- memory -------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["global", "shared", "local"])
@pytest.mark.parametrize("is_generic", [False, True])
def test_each_space_and_generic_addresses_of_it(space, is_generic):
    address = {"global": "%a1", "shared": "%d4", "local": "%d5"}[space]
    to = {"shared": "cvta.shared.u64 %d4, %d4;", "local": "cvta.local.u64 %d5, %d5;"}
    how = "" if is_generic else f".{space}"
    body = f"""
    .local .align 8 .b8 mine[256];
    cvt.u64.u32 %d4, %s;
    mov.u64 %d5, mine;
    {to.get(space, "") if is_generic else ""}
    mul.wide.u32 %d6, %l, 8;
    add.s64 %d7, {address}, %d6;
    mad.lo.u32 %r0, %l, 5, 1;
    st{how}.u32 [%d7], %r0;
    st{how}.u16 [%d7+4], 9;
    ld{how}.u32 %r1, [%d7];
    ld{how}.u16 %r2, [%d7+4];
    add.u32 %r9, %r1, %r2;
    """
    found = answer(body, arguments=[buffer(64)])
    assert found.tolist() == (5 * LANE + 10).tolist()


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16", "u32", "s32"])
def test_loads_extend_to_their_register(kind):
    values = buffer(4)
    values[:] = 0xFFFEFDFC
    body = f"ld.global.{kind} %r9, [%a1+4];"
    bits = int(kind[1:])
    value = 0xFFFEFDFC & ((1 << bits) - 1)
    if kind[0] == "s" and value >> (bits - 1):
        value += (1 << 32) - (1 << bits)
    assert answer(body, arguments=[values]).tolist() == [value & 0xFFFFFFFF] * 32


@pytest.mark.parametrize(
    "kind, registers",
    [
        ("u8", "r"),
        ("v2.u8", "h"),
        ("v4.u8", "h"),
        ("u16", "h"),
        ("v2.b16", "h"),
        ("v4.u16", "h"),
        ("b32", "r"),
        ("v2.b32", "r"),
        ("v4.f32", "f"),
        ("b64", "d"),
        ("v2.b64", "d"),
        ("f64", "d"),
    ],
)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_what_is_stored_is_loaded_in_every_width(kind, registers, space):
    count = int(kind[1]) if kind[0] == "v" else 1
    size = count * int(kind.split(".")[-1][1:]) // 8
    names = ", ".join(f"%{registers}{40 + place}" for place in range(count))
    held = f"{{{names}}}" if count > 1 else names
    given, out = buffer(32 * 16, np.uint8), buffer(32 * 16, np.uint8)
    given[:] = np.random.default_rng(2).integers(0, 255, given.size)
    through = (
        f"st.shared.{kind} [%r1], {held}; ld.shared.{kind} {held}, [%r1];"
        if space == "shared"
        else ""
    )
    body = f"""
    mul.lo.u32 %r0, %l, {size};
    add.u32 %r1, %r0, %s;
    cvt.u64.u32 %d0, %r0;
    add.s64 %d1, %a0, %d0;
    add.s64 %d2, %a1, %d0;
    ld.global.{kind} {held}, [%d1];
    {through}
    st.global.{kind} [%d2], {held};
    """
    assert not run(body, given, out).findings
    assert out[: 32 * size].tolist() == given[: 32 * size].tolist()


def test_variables_of_the_module_hold_what_they_are_given():
    module = """
    .global .align 4 .u32 table[4] = {7, 8, 9, 10};
    .const .align 4 .u32 fixed[2] = {100, 200};
    """
    body = """
    and.b32 %r0, %l, 3;
    mul.wide.u32 %d0, %r0, 4;
    mov.u64 %d1, table;
    add.s64 %d1, %d1, %d0;
    ld.global.u32 %r1, [%d1];
    ld.const.u32 %r2, [fixed+4];
    add.u32 %r9, %r1, %r2;
    """
    expected = (207 + LANE % 4).tolist()
    assert answer(body, module=module).tolist() == expected


def test_arguments_of_integers():
    body = "add.u32 %r9, %n1, %n2;"
    assert answer(body, arguments=[7, -3]).tolist() == [4] * 32


ATOMICS = {
    "add.u32": lambda old, new: old + new,
    "add.s32": lambda old, new: old + new,
    "min.u32": min,
    "max.u32": max,
    "and.b32": lambda old, new: old & new,
    "or.b32": lambda old, new: old | new,
    "xor.b32": lambda old, new: old ^ new,
    "inc.u32": lambda old, new: 0 if old >= new else old + 1,
    "dec.u32": lambda old, new: new if old == 0 or old > new else old - 1,
    "exch.b32": lambda old, new: new,
}


@pytest.mark.parametrize("operation", ATOMICS)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics_take_the_lanes_one_after_another(operation, space):
    start, values = 21, (LANE * 7 + 5) % 41
    word = buffer(4)
    at = "%a1" if space == "global" else "%s"
    body = f"""
    setp.eq.u32 %p0, %t, 0;
    @%p0 st.{space}.u32 [{at}], {start};
    bar.sync 0;
    mad.lo.u32 %r0, %l, 7, 5;
    rem.u32 %r0, %r0, 41;
    atom.{space}.{operation} %r9, [{at}], %r0;
    bar.sync 0;
    ld.{space}.u32 %r1, [{at}];
    @%p0 st.global.u32 [%a2], %r1;
    """
    last = buffer(4)
    found = answer(body, arguments=[word, last])
    expected, value = [], start
    for new in values.tolist():
        expected.append(value)
        value = ATOMICS[operation](value, new)
    assert found.tolist() == expected
    assert last[0] == value


def test_compare_and_swap_succeeds_once():
    word = buffer(4)
    body = """
    add.u32 %r0, %l, 1;
    atom.global.cas.b32 %r9, [%a1], 0, %r0;
    """
    assert answer(body, arguments=[word]).tolist() == [0] + [1] * 31
    assert word[0] == 1


@pytest.mark.parametrize("kind, dtype", [("f32", np.float32), ("f64", np.float64)])
def test_atomic_sums_of_floats(kind, dtype):
    word = buffer(4, dtype)
    register = "%f0" if kind == "f32" else "%q0"
    body = f"cvt.rn.{kind}.u32 {register}, %t; red.global.add.{kind} [%a0], {register};"
    assert not run(body, word, block=64).findings
    assert word[0] == 2016


def test_matrices_go_through_shared_memory_as_they_were():
    body = f"""
    shl.b32 %r0, %l, 4;
    add.u32 %r0, %r0, %s;
    mad.lo.u32 %r1, %l, 65536, 17;
    add.u32 %r2, %r1, 1;
    add.u32 %r3, %r1, 2;
    add.u32 %r4, %r1, 3;
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r0], {{%r1, %r2, %r3, %r4}};
    bar.warp.sync {FULL};
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r0];
    sub.u32 %r9, %r5, %r1;
    sub.u32 %r6, %r6, %r2;
    or.b32 %r9, %r9, %r6;
    sub.u32 %r7, %r7, %r3;
    or.b32 %r9, %r9, %r7;
    sub.u32 %r8, %r8, %r4;
    or.b32 %r9, %r9, %r8;
    """
    assert not answer(body).any()


def test_ldmatrix_gives_two_neighbours_of_a_row_to_each_lane():
    body = """
    st.shared.u32 [%m], %t;
    bar.sync 0;
    shl.b32 %r0, %l, 4;
    and.b32 %r0, %r0, 0x7f;
    add.u32 %r0, %r0, %s;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r0];
    """
    assert answer(body).tolist() == LANE.tolist()


def test_mma_of_ones():
    body = """
    mov.u32 %r1, 0x3c003c00;
    mov.f32 %f0, 0f00000000;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f4, %f5, %f6, %f7},
        {%r1, %r1, %r1, %r1}, {%r1, %r1}, {%f0, %f0, %f0, %f0};
    add.f32 %f4, %f4, %f7;
    cvt.rni.u32.f32 %r9, %f4;
    """
    assert answer(body).tolist() == [32] * 32


def test_wgmma_of_ones():
    body = """
    shl.b32 %r0, %t, 4;
    add.u32 %r0, %r0, %s;
    mov.u32 %r1, 0x3c003c00;
    st.shared.v4.u32 [%r0], {%r1, %r1, %r1, %r1};
    setp.lt.u32 %p0, %t, 16;
    @%p0 st.shared.v4.u32 [%r0+2048], {%r1, %r1, %r1, %r1};
    fence.proxy.async;
    bar.sync 0;
    shr.u32 %r2, %s, 4;
    cvt.u64.u32 %d0, %r2;
    or.b64 %d0, %d0, 0x0000001000080000;
    add.s64 %d1, %d0, 128;
    mov.f32 %f0, 0f3f800000;
    mov.f32 %f1, 0f3f800000;
    mov.f32 %f2, 0f3f800000;
    mov.f32 %f3, 0f3f800000;
    setp.eq.u32 %p1, %r1, %r1;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16
        {%f0, %f1, %f2, %f3}, %d0, %d1, %p1, 1, 1, 0, 0;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16
        {%f0, %f1, %f2, %f3}, %d0, %d1, %p1, 1, -1, 0, 0;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16
        {%f0, %f1, %f2, %f3}, %d0, %d1, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    cvt.rni.u32.f32 %r9, %f3;
    """
    assert answer(body, lanes=128, block=128).tolist() == [17] * 128


def test_cp_async_fills_with_zeros_what_it_does_not_read():
    given = buffer(256)
    given[:] = 7
    body = """
    shl.b32 %r0, %l, 4;
    add.u32 %r1, %r0, %s;
    cvt.u64.u32 %d0, %r0;
    add.s64 %d0, %d0, %a1;
    and.b32 %r2, %l, 1;
    shl.b32 %r2, %r2, 3;
    cp.async.cg.shared.global [%r1], [%d0], 16, %r2;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [%r1];
    add.u32 %r3, %r3, %r4;
    add.u32 %r5, %r5, %r6;
    mad.lo.u32 %r9, %r5, 100, %r3;
    """
    assert answer(body, arguments=[given]).tolist() == (14 * (LANE % 2)).tolist()


@pytest.mark.parametrize(
    "instruction",
    [
        "brkpt;",
        "tex.1d.v4.f32.f32 {%f0, %f1, %f2, %f3}, [%d0, {%f4}];",
        "createpolicy.fractional.L2::evict_last.b64 %d0, 0f3f800000;",
        "tcgen05.shift.cta_group::1.down [%r3];",
        "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 "
        "{%f0, %f1, %f2, %f3}, %d0, %d1, %r0, 0, %p1, 1, 1, 0, 0;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f64 [%a0], [%s], 16;",
    ],
)
def test_what_is_not_known_is_refused_by_its_name(instruction):
    with pytest.raises((UnknownOpcode, ValueError)) as refused:
        run(instruction, buffer(8))
    assert instruction.split(" ")[0].rstrip(";") in str(refused.value)
