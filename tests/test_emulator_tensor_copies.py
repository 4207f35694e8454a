"""Copies of tensors and of runs of bytes, executed: what is found, and what they move."""

import numpy as np
import pytest

from batchline.bench.measure.emulator import tensor_maps
from batchline.bench.measure.emulator.execution import EARLY, LATE, SHUFFLED
from batchline.tests.emulated import buffer, faults, run, twins

SCHEDULES = (LATE, EARLY, SHUFFLED)
ROWS, COLUMNS = 16, 32  # of the tensor, in words
BOX = (8, 16)  # rows and columns of the box: 512 bytes

# p2 is the map; an mbarrier is at s + 8192, the boxes at s and s + 1024.
MAKE = """
    setp.eq.u32 %p0, %t, 0;
    mov.b64 %d0, p2;
    cvta.param.u64 %d1, %d0;
    mov.u32 %r10, 0;
    mov.u32 %r11, 0;
    @%p0 mbarrier.init.shared::cta.b64 [%s+8192], 1;
    bar.sync 0;
"""
LOAD = "@%p0 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes "
WAIT = """
    W{n}:
    mbarrier.try_wait.parity.shared::cta.b64 %p9, [%s+8192], {parity};
    @!%p9 bra W{n};
"""
FILL = "st.shared.u32 [%m], %t; st.shared.u32 [%m+256], %t;"
STORE = "@%p0 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d1, {%r10, %r11}], [%s];"

ADD = STORE.replace("cp.async", "cp.reduce.async").replace("cta.", "cta.add.")


def expect(size):
    return f"@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%s+8192], {size};"


def wait(parity=0, number=0):
    return WAIT.format(parity=parity, n=number)


def load(at="%s", x="%r10", y="%r11"):
    return f"{LOAD} [{at}], [%d1, {{{x}, {y}}}], [%s+8192];"


def copied(body, schedule=LATE, fill=0, change=lambda encoded: encoded, block=64):
    """Run on a tensor of ROWS x COLUMNS words and on a buffer; (execution, both)."""
    tensor = buffer(ROWS * COLUMNS)
    tensor[:] = np.arange(tensor.size) + 1
    other = buffer(1024)
    encoded = tensor_maps.encode(
        tensor.ctypes.data,
        tensor_maps.U32,
        [COLUMNS, ROWS],
        [4 * COLUMNS],
        [BOX[1], BOX[0]],
        fill=fill,
    )
    done = run(body, tensor, other, change(encoded), block=block, schedule=schedule)
    return done, tensor.reshape(ROWS, COLUMNS), other


FAULTS = {
    "read before the wait": (
        "missing-wait",
        f"{MAKE} {expect(512)} {load()} <||{wait()}> ld.shared.u32 %r1, [%m];",
    ),
    "the wrong parity": (
        "missing-wait",
        f"{MAKE} {expect(512)} {load()} <{wait(1)}||{wait(0)}> ld.shared.u32 %r1, [%m];",
    ),
    "the second round waits for the first": (
        "missing-wait",
        f"{MAKE} {expect(512)} {load()} {wait()} ld.shared.u32 %r1, [%m]; bar.sync 0;"
        f"{expect(512)} {load()} <{wait(0, 1)}||{wait(1, 1)}> ld.shared.u32 %r1, [%m];",
    ),
    "too few bytes expected": (
        "deadlock",
        f"{MAKE} <{expect(496)}||{expect(512)}> {load()} {wait()}",
    ),
    "too many bytes expected": (
        "deadlock",
        f"{MAKE} <{expect(528)}||{expect(512)}> {load()} {wait()}",
    ),
    "of two boxes one is expected": (
        "missing-wait",
        f"{MAKE} <{expect(512)}||{expect(1024)}> {load()} {load('%s+1024')} {wait()}"
        "ld.shared.u32 %r1, [%m]; ld.shared.u32 %r2, [%m+1024];",
    ),
    "a box that overwrites what is read": (
        "shared-race",
        f"{MAKE} {expect(512)} {load()} {wait()} ld.shared.u32 %r1, [%m]; <||bar.sync 0;>"
        f"{expect(512)} {load()} {wait(1, 1)}",
    ),
    "another mbarrier": (
        "mbarrier-misuse",
        f"{MAKE} {expect(512)} {LOAD} [%s], [%d1, {{%r10, %r11}}], [%s+<8200||8192>];"
        f"{wait()}",
    ),
    "a box in the middle of 128 bytes": (
        "misaligned",
        f"{MAKE} {expect(512)} <{load('%s+64')}||{load('%s+128')}> {wait()}",
    ),
    "a box out of shared memory": (
        "out-of-bounds",
        f"{MAKE} {expect(512)} <{load('%s+16256')}||{load('%s+128')}> {wait()}",
    ),
    "coordinates of another rank": (
        "bad-descriptor",
        f"{MAKE} {expect(512)} <@%p0 cp.async.bulk.tensor.1d.shared::cta.global."
        "mbarrier::complete_tx::bytes [%s], [%d1, {%r10}], [%s+8192];||"
        f"{load()}> {wait()}",
    ),
    "stored without a proxy fence": (
        "missing-proxy-fence",
        f"{MAKE} {FILL} <||fence.proxy.async;> bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
    ),
    "stored before all have written": (
        "shared-race",
        f"{MAKE} {FILL} fence.proxy.async; <||bar.sync 0;>"
        f"{STORE} cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
    ),
    "the last store is not awaited": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; <||cp.async.bulk.wait_group.read 0;>",
    ),
    "one store too many is left open": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; cp.async.bulk.wait_group.read <1||0>;"
        "bar.sync 0; st.shared.u32 [%m], %t; st.shared.u32 [%m+256], %t; cp.async.bulk.wait_group 0;",
    ),
    "the staging is overwritten while it is stored": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; <||cp.async.bulk.wait_group.read 0;>"
        "bar.sync 0; st.shared.u32 [%m], %t; st.shared.u32 [%m+256], %t; cp.async.bulk.wait_group 0;",
    ),
    "a run of bytes read before the wait": (
        "missing-wait",
        f"{MAKE} {expect(256)} @%p0 cp.async.bulk.shared::cluster.global."
        f"mbarrier::complete_tx::bytes [%s], [%a0], 256, [%s+8192]; <||{wait()}>"
        "ld.shared.u32 %r1, [%m];",
    ),
    "a run of bytes from no multiple of 16": (
        "misaligned",
        f"{MAKE} {expect(256)} @%p0 cp.async.bulk.shared::cluster.global."
        f"mbarrier::complete_tx::bytes [%s], [%a0+<8||16>], 256, [%s+8192]; {wait()}",
    ),
    "a run of bytes past the end": (
        "out-of-bounds",
        f"{MAKE} {expect(256)} @%p0 cp.async.bulk.shared::cluster.global."
        f"mbarrier::complete_tx::bytes [%s], [%a0+<2048||1792>], 256, [%s+8192];"
        f"{wait()}",
    ),
    "a stored box is loaded before it is complete": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; <||cp.async.bulk.wait_group 0;>"
        "@%p0 ld.global.u32 %r1, [%a0]; cp.async.bulk.wait_group 0;",
    ),
    "a stored box is read when only its source is known to be read": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; cp.async.bulk.wait_group<.read||> 0;"
        "@%p0 ld.global.u32 %r1, [%a0]; cp.async.bulk.wait_group 0;",
    ),
    "a box is loaded that a store may still be writing": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; cp.async.bulk.wait_group<.read||> 0;"
        f"{expect(512)} {load('%s+1024')} {wait()} cp.async.bulk.wait_group 0;",
    ),
    "two boxes go to one place": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; cp.async.bulk.wait_group<.read||> 0;"
        f"{STORE} cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
    ),
    "two rounds' bytes are expected in the first": (
        "deadlock",
        f"{MAKE} <{expect(1024)}||{expect(512)}> {load()} {wait()}"
        f"ld.shared.u32 %r1, [%m]; bar.sync 0;"
        f"<@%p0 mbarrier.arrive.shared::cta.b64 _, [%s+8192];||{expect(512)}>"
        f"{load()} {wait(1, 1)}",
    ),
    "another round begins before the last is awaited": (
        "mbarrier-misuse",
        f"{MAKE} {expect(512)} {load()} <{expect(512)} {load('%s+1024')}||>"
        f"{wait()} ld.shared.u32 %r1, [%m];",
    ),
    "loaded into what a store still reads": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        f"{STORE} cp.async.bulk.commit_group; <||cp.async.bulk.wait_group 0;>"
        f"{expect(512)} {load()} {wait()} cp.async.bulk.wait_group 0;",
    ),
    "a box of what ordinary stores have written": (
        "missing-proxy-fence",
        f"{MAKE} st.global.u32 [%g0], %t; <||fence.proxy.async;> bar.sync 0;"
        f"{expect(512)} {load()} {wait()}",
    ),
    "two blocks store one box": (
        "global-race",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0;"
        "<||mov.u32 %r11, %ctaid.x; shl.b32 %r11, %r11, 3;>"
        f"{STORE} cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
    ),
    "a run that ends behind its allocation": (
        "out-of-bounds",
        f"{MAKE} {expect(512)} add.s64 %d2, %a0, <1552||1536>;"
        "@%p0 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%s], [%d2], "
        f"512, [%s+8192]; {wait()}",
    ),
    "two blocks store where they should add": (
        "global-race",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0; <{STORE}||{ADD}>"
        "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
    ),
    "what a box is added to is read before the wait": (
        "missing-wait",
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0; {ADD} cp.async.bulk.commit_group;"
        "cp.async.bulk.wait_group<.read||> 0; @%p0 ld.global.u32 %r1, [%a0];",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_found_and_its_mended_twin_is_clean(name):
    word, body = FAULTS[name]
    wrong, right = twins(body)
    found = [faults(_run(name, wrong, schedule)) for schedule in SCHEDULES]
    assert all(found), found
    assert any(word in one for one in found), found
    for schedule in SCHEDULES:
        assert not _run(name, right, schedule).findings


def _run(name, body, schedule):
    if name.startswith("two blocks"):
        tensor = buffer(ROWS * COLUMNS)
        encoded = tensor_maps.encode(
            tensor.ctypes.data,
            tensor_maps.U32,
            [COLUMNS, ROWS],
            [4 * COLUMNS],
            [BOX[1], BOX[0]],
        )
        return run(
            body, tensor, buffer(8), encoded, block=64, grid=2, schedule=schedule
        )
    return copied(body, schedule)[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_box_across_the_edge_is_filled_with_zeros(schedule):
    body = f"""{MAKE} mov.u32 %r10, 24; mov.u32 %r11, -2;
    {expect(512)} {load()} {wait()}
    ld.shared.v2.u32 {{%r1, %r2}}, [%m];
    add.s64 %g1, %g1, %o;
    shl.b32 %r3, %t, 3;
    add.u32 %r3, %r3, %s;
    ld.shared.v2.u32 {{%r1, %r2}}, [%r3];
    st.global.v2.u32 [%g1], {{%r1, %r2}};
    """
    done, tensor, other = copied(body.replace("[%m];", "[%s];"), schedule)
    expected = np.zeros(BOX, np.uint32)
    expected[2:, :8] = tensor[:6, 24:]
    assert not done.findings
    assert other[:128].reshape(BOX).tolist() == expected.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_box_is_stored_within_the_tensor_only(schedule):
    body = f"""{MAKE} mov.u32 %r10, 24; mov.u32 %r11, 12;
    shl.b32 %r3, %t, 3;
    add.u32 %r3, %r3, %s;
    shl.b32 %r4, %t, 1;
    add.u32 %r5, %r4, 1;
    st.shared.v2.u32 [%r3], {{%r4, %r5}};
    fence.proxy.async;
    bar.sync 0;
    {STORE} cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    """
    done, tensor, _ = copied(body, schedule)
    expected = np.arange(1, ROWS * COLUMNS + 1).reshape(ROWS, COLUMNS)
    expected[12:, 24:] = np.arange(128).reshape(BOX)[:4, :8]
    assert not done.findings
    assert tensor.tolist() == expected.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_box_is_combined_with_the_tensor(schedule):
    done, tensor, _ = copied(
        f"""{MAKE} {FILL} fence.proxy.async; bar.sync 0;
        {ADD} {ADD.replace("add", "max")} cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
        """,
        schedule,
    )
    numbers = np.arange(1, ROWS * COLUMNS + 1).reshape(ROWS, COLUMNS)
    numbers[:8, :16] += np.tile(np.arange(64), 2).reshape(BOX)
    assert not done.findings
    assert tensor.tolist() == numbers.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "kind, dtype, given",
    [("f32", np.float32, 0x3FC00000), ("noftz.f16", np.float16, 0x3E003E00)],
)
def test_a_run_is_added_to_memory(schedule, kind, dtype, given):
    numbers = buffer(64, dtype)
    numbers[:] = np.arange(64) / 4
    body = f"""
    st.shared.u32 [%m], {given};
    fence.proxy.async;
    bar.sync 0;
    setp.eq.u32 %p0, %t, 0;
    @%p0 cp.reduce.async.bulk.global.shared::cta.bulk_group.add.{kind} [%a0+16], [%s], 32;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    """
    expected = np.arange(64) / 4
    first = 16 // numbers.itemsize
    expected[first : first + 32 // numbers.itemsize] += 1.5 * 2
    done = run(body, numbers, block=32, grid=2, schedule=schedule)
    assert not done.findings, [str(one) for one in done.findings]
    assert numbers.tolist() == expected.tolist()


def test_an_operation_that_the_elements_do_not_have():
    done, _, _ = copied(
        f"{MAKE} {FILL} fence.proxy.async; bar.sync 0; {ADD.replace('add', 'min')}",
        change=lambda encoded: tensor_maps.replace(
            encoded, "elemtype", None, tensor_maps.F32
        ),
    )
    assert "bad-descriptor" in faults(done)


def test_a_map_that_no_chip_accepts_is_found():
    def spoiled(encoded):
        return bytes(len(encoded))

    body = f"{MAKE} {expect(512)} {load()}"
    done, _, _ = copied(body, change=spoiled)
    assert "bad-descriptor" in faults(done)
