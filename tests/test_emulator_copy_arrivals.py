"""cp.async.mbarrier.arrive: an mbarrier that counts threads whose copies are over."""

import pytest

from batchline.bench.measure.emulator import execution
from batchline.bench.measure.emulator.ptx import UnknownOpcode
from batchline.tests.emulated import (
    SCHEDULES,
    Case,
    buffer,
    mbarrier,
    require_clean,
    require_found,
    run,
    wait,
)

AT = "%s+8192"
MAKE = mbarrier(AT, 64)
COPY = "cp.async.ca.shared.global [%m], [%g0], 4;"
NOINC = f"cp.async.mbarrier.arrive.noinc.shared::cta.b64 [{AT}];"
READ = """
xor.b32 %r0, %m, 128;
ld.shared.u32 %r1, [%r0];
st.global.u32 [%g1], %r1;
"""

CASES = [
    Case(
        "a read before the copies are over",
        "missing-wait",
        f"{MAKE} {COPY} {NOINC} <||{wait(0, at=AT)}> {READ}",
    ),
    Case(
        "an arrival before the copy",
        "missing-wait",
        f"{MAKE} <{NOINC} {COPY}||{COPY} {NOINC}> {wait(0, at=AT)} {READ}",
    ),
    Case(
        "what was stored is not handed on with the copies",
        "shared-race",
        f"""
        {MAKE}
        st.shared.u32 [%m], %t;
        {NOINC}
        {wait(0, at=AT)}
        <||bar.sync 0;>
        xor.b32 %r0, %m, 128;
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    Case(
        "fewer arrive than it expects",
        "deadlock",
        f"""
        {mbarrier(AT, "<65||64>")}
        {COPY}
        {NOINC}
        {wait(0, at=AT)}
        """,
    ),
    Case(
        "one that counts itself adds no arrival of its own",
        "deadlock",
        f"""
        {mbarrier(AT, 64)}
        {COPY}
        cp.async.mbarrier.arrive.shared.b64 [{AT}];
        <||mbarrier.arrive.shared::cta.b64 _, [{AT}];>
        {wait(0, at=AT)}
        """,
    ),
    Case(
        "more arrive than it expects",
        "mbarrier-misuse",
        f"""
        {mbarrier(AT, "<63||64>")}
        {COPY}
        {NOINC}
        {wait(0, at=AT)}
        """,
    ),
    Case(
        "no mbarrier",
        "mbarrier-misuse",
        f"{MAKE} {COPY} cp.async.mbarrier.arrive.noinc.b64 [%s+<4096||8192>];",
    ),
    Case(
        "misaligned",
        "misaligned",
        f"{MAKE} {COPY} cp.async.mbarrier.arrive.noinc.b64 [%s+<8196||8192>];",
    ),
    Case(
        "outside",
        "out-of-bounds",
        f"{MAKE} {COPY} cp.async.mbarrier.arrive.noinc.b64 [%s+<16384||8192>];",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_a_fault_is_found(case):
    require_found(case)


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_nothing_is_found_in_its_mended_twin(case):
    require_clean(case)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_copies_are_there_after_the_wait(schedule):
    given, result = buffer(64), buffer(64)
    given[:] = range(64)
    body = f"{MAKE} {COPY} {NOINC} {wait(0, at=AT)} {READ}"
    done = run(body, given, result, block=64, schedule=SCHEDULES[schedule])
    assert not done.findings
    assert result.tolist() == [*range(32, 64), *range(32)]


def test_halves_of_a_warp_arrive_at_mbarriers_of_their_own():
    body = f"""
    {mbarrier(AT, 16)}
    @%p0 mbarrier.init.shared::cta.b64 [{AT}+8], 16;
    bar.sync 0;
    shr.u32 %r2, %l, 4;
    shl.b32 %r2, %r2, 3;
    add.u32 %r2, %r2, %s;
    {COPY}
    cp.async.mbarrier.arrive.noinc.b64 [%r2+8192];
    {wait(0, at=AT)}
    {wait(0, at=f"{AT}+8")}
    xor.b32 %r0, %m, 64;
    ld.shared.u32 %r1, [%r0];
    st.global.u32 [%g1], %r1;
    """
    given, result = buffer(32), buffer(32)
    given[:] = range(32)
    done = run(body.replace("+8192+8", "+8200"), given, result)
    assert not done.findings, [str(one) for one in done.findings]
    assert result.tolist() == [*range(16, 32), *range(16)]


def test_copies_that_were_told_of_are_waited_for_as_well():
    body = f"{MAKE} {COPY} {NOINC} cp.async.wait_all; bar.sync 0; {READ}"
    for schedule in SCHEDULES.values():
        done = run(body, buffer(64), buffer(64), block=64, schedule=schedule)
        assert not done.findings


def test_more_copies_than_are_kept_track_of_at_once():
    body = f"""
    {mbarrier(AT, 32)}
    mov.u32 %r5, 0;
    Again:
    {COPY}
    {NOINC}
    and.b32 %r6, %r5, 1;
    {wait("%r6", at=AT)}
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p1, %r5, 5000;
    @%p1 bra Again;
    """
    assert not run(body, buffer(32), schedule=execution.LATE).findings


def test_that_of_another_block_is_refused():
    with pytest.raises(UnknownOpcode, match="shared::cluster"):
        run(f"cp.async.mbarrier.arrive.noinc.shared::cluster.b64 [{AT}];")
