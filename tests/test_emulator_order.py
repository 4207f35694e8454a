"""Order between the lanes of a warp and between blocks: kernels that lack it and their
mended twins.
"""

import pytest

from batchline.tests.emulated import Case, mbarrier, require_clean, require_found, wait

NEIGHBOUR = "xor.b32 %r0, %m, 4;"  # the word of another thread of the warp
NEXT = "mul.wide.u32 %d0, %t, 4; xor.b64 %d0, %d0, 4; add.s64 %d0, %d0, %a1;"
IN_ORDER = ("late", "early")  # blocks in the order of their numbers


def lanes(name, word, body, block=32, **settings):
    return Case(name, word, body, block=block, **settings)


LANES = [
    lanes(
        "read after write",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        <||bar.warp.sync -1;>
        {NEIGHBOUR}
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    lanes(
        "write after read",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        bar.warp.sync -1;
        {NEIGHBOUR}
        ld.shared.u32 %r1, [%r0];
        <||bar.warp.sync -1;>
        st.shared.u32 [%m], %r1;
        """,
    ),
    lanes(
        "write after write",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        <||bar.warp.sync -1;>
        {NEIGHBOUR}
        st.shared.u32 [%r0], 77;
        """,
    ),
    lanes(
        "a barrier in place of a shuffle, which orders no memory",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        <shfl.sync.bfly.b32 %r2, %t, 1, 31, -1;||bar.sync 0;>
        {NEIGHBOUR}
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    lanes(
        "a fence that all lanes make, and a shuffle behind it",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        <||membar.cta;>
        shfl.sync.bfly.b32 %r2, %t, 1, 31, -1;
        {NEIGHBOUR}
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    lanes(
        "what was read has been handed round before it is overwritten",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        bar.warp.sync -1;
        {NEIGHBOUR}
        ld.shared.u32 %r1, [%r0];
        <||shfl.sync.bfly.b32 %r1, %r1, 2, 31, -1;>
        st.shared.u32 [%m], %r1;
        """,
    ),
    lanes(
        "each half has waited for itself",
        "shared-race",
        """
        st.shared.u32 [%m], %t;
        setp.lt.u32 %p0, %l, 16;
        @%p0 bra LOW;
        bar.warp.sync 0xffff0000;
        bra READ;
        LOW:
        bar.warp.sync 0x0000ffff;
        READ:
        xor.b32 %r0, %m, <64||4>;
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    lanes(
        "a tree of sums in volatile memory",
        "shared-race",
        """
        st.volatile.shared.u32 [%m], %t;
        <||bar.warp.sync -1;>
        setp.lt.u32 %p0, %l, 16;
        @%p0 ld.volatile.shared.u32 %r1, [%m+64];
        <||bar.warp.sync -1;>
        @%p0 st.volatile.shared.u32 [%m], %r1;
        <||bar.warp.sync -1;>
        setp.lt.u32 %p0, %l, 8;
        @%p0 ld.volatile.shared.u32 %r1, [%m+32];
        """,
    ),
    lanes(
        "a loop's next round reads what the last has written",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        bar.warp.sync -1;
        mov.u32 %r5, 0;
        L:
        {NEIGHBOUR}
        ld.shared.u32 %r1, [%r0];
        bar.warp.sync -1;
        st.shared.u32 [%m], %r1;
        <||bar.warp.sync -1;>
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p0, %r5, 3;
        @%p0 bra L;
        """,
    ),
    lanes(
        "stmatrix, then another lane's word",
        "shared-race",
        """
        shl.b32 %r0, %t, 4;
        add.u32 %r0, %s, %r0;
        stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r0], {%t, %t, %t, %t};
        <||bar.warp.sync -1;>
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r0];
        """,
    ),
    lanes(
        "rows of a stmatrix at one place, of other numbers or the same",
        "shared-race",
        """
        <mov.u32 %r1, %t;||mov.u32 %r1, 7;>
        stmatrix.sync.aligned.m8n8.x4.shared.b16 [%s], {%r1, %r1, %r1, %r1};
        """,
    ),
    lanes(
        "a lane sets to zero what all add to",
        "shared-race",
        """
        setp.eq.u32 %p0, %t, 0;
        @%p0 st.shared.u32 [%s], 0;
        <||bar.warp.sync -1;>
        red.shared.add.u32 [%s], 1;
        """,
    ),
    lanes(
        "a lane reads what all have added",
        "shared-race",
        """
        setp.eq.u32 %p0, %t, 31;
        @%p0 st.shared.u32 [%s], 0;
        bar.warp.sync -1;
        red.shared.add.u32 [%s], 1;
        <||bar.warp.sync -1;>
        @%p0 ld.shared.u32 %r1, [%s];
        """,
    ),
    lanes(
        "another lane's cp.async",
        "missing-wait",
        f"""
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.wait_all;
        <||bar.warp.sync -1;>
        {NEIGHBOUR}
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    lanes(
        "a bulk store of what the other lanes have written",
        "shared-race",
        """
        setp.eq.u32 %p0, %t, 0;
        st.shared.u32 [%m], %t;
        fence.proxy.async;
        <||bar.warp.sync -1;>
        @%p0 cp.async.bulk.global.shared::cta.bulk_group [%a1], [%s], 128;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
        """,
    ),
    lanes(
        "one lane's proxy fence before it knows of the others' stores",
        "missing-proxy-fence",
        """
        setp.eq.u32 %p0, %t, 0;
        st.shared.u32 [%m], %t;
        <@%p0||> fence.proxy.async;
        bar.warp.sync -1;
        @%p0 cp.async.bulk.global.shared::cta.bulk_group [%a1], [%s], 128;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
        """,
    ),
    lanes(
        "read after write, global",
        "global-race",
        f"st.global.u32 [%g1], %t; <||bar.warp.sync -1;> {NEXT} ld.global.u32 %r1, [%d0];",
    ),
    lanes(
        "write after read, global",
        "global-race",
        f"{NEXT} ld.global.u32 %r1, [%d0]; <||bar.warp.sync -1;> st.global.u32 [%g1], %t;",
    ),
    lanes(
        "write of what all lanes have read, global",
        "global-race",
        """
        ld.global.u32 %r1, [%a1];
        <||bar.warp.sync -1;>
        setp.eq.u32 %p0, %t, 31;
        @%p0 st.global.u32 [%a1], %r1;
        """,
    ),
]

HALVES = "setp.lt.u32 %p0, %l, 16; selp.b32 %r5, 0xffff, 0xffff0000, %p0;"
LANES += [
    lanes(
        "each half of a warp waits for itself",
        "shared-race",
        f"""
        {HALVES}
        st.shared.u32 [%m], %t;
        bar.warp.sync %r5;
        xor.b32 %r0, %m, <64||4>;
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    lanes(
        "each half of a warp shuffles for itself",
        "divergent-barrier",
        f"{HALVES} shfl.sync.bfly.b32 %r1, %l, <16||8>, 31, %r5;",
    ),
    lanes(
        "a half that names the other, which names itself",
        "divergent-barrier",
        f"{HALVES} <@%p0 mov.b32 %r5, -1;||> vote.sync.ballot.b32 %r1, %p0, %r5;",
    ),
    lanes(
        "a load through the cache of what nothing writes",
        "global-race",
        "st.global.u32 [%g1], %t; bar.sync 0; ld.global<.nc||>.u32 %r1, [%g1];",
    ),
    lanes(
        "such a load of what an atomic has changed",
        "global-race",
        "red.global.add.u32 [%a1], 1; bar.sync 0; ld.global.nc.u32 %r1, [%a<1||0>];",
    ),
]

LANES += [
    Case(
        "one lane arrives for all before they have written",
        "shared-race",
        f"""{mbarrier()}
        setp.eq.u32 %p1, %w, 0;
        @!%p1 bra USE;
        st.shared.u32 [%m+64], %t;
        <||bar.warp.sync -1;>
        @%p0 mbarrier.arrive.shared::cta.b64 _, [%s];
        bra DONE;
        USE:
        {wait(0)}
        ld.shared.u32 %r1, [%m-64];
        DONE:
        """,
    ),
    Case(
        "a lane arrives for what another has written",
        "shared-race",
        f"""{mbarrier()}
        setp.eq.u32 %p1, %w, 0;
        @!%p1 bra USE;
        setp.eq.u32 %p2, %l, <1||0>;
        @%p2 st.shared.u32 [%s+64], %t;
        @%p0 mbarrier.arrive.shared::cta.b64 _, [%s];
        bra DONE;
        USE:
        {wait(0)}
        ld.shared.u32 %r1, [%s+64];
        DONE:
        """,
    ),
    Case(
        "one lane says that a stage is free before all have read it",
        "shared-race",
        f"""{mbarrier()}
        st.shared.u32 [%m+64], %t;
        bar.sync 0;
        setp.eq.u32 %p1, %w, 0;
        @!%p1 bra FILL;
        ld.shared.u32 %r1, [%m+64];
        <||bar.warp.sync -1;>
        @%p0 mbarrier.arrive.shared::cta.b64 _, [%s];
        bra DONE;
        FILL:
        {wait(0)}
        st.shared.u32 [%m-64], 7;
        DONE:
        """,
    ),
]


def last_block(before="", sum_up="", ticket="atom.global.inc.u32 %r1, [%a0], 3;"):
    """Four blocks of a thread store a word each; the last one reads all."""
    return f"""
    mov.u32 %r0, %ctaid.x;
    mul.wide.u32 %d0, %r0, 4;
    add.s64 %d0, %d0, %a1;
    {before}
    {ticket}
    setp.ne.u32 %p0, %r1, 3;
    @%p0 bra DONE;
    {sum_up}
    ld.global.u32 %r2, [%a1];
    ld.global.u32 %r3, [%a1+4];
    ld.global.u32 %r4, [%a1+8];
    ld.global.u32 %r4, [%a1+12];
    DONE:
    """


STORE = "st.global.u32 [%d0], %r0;"


def handed_over(stored, loaded, stored_before="", loaded_behind=""):
    """Block 0 writes a word and sets a flag; block 1 reads it if the flag is set."""
    return f"""
    mov.u32 %r0, %ctaid.x;
    setp.eq.u32 %p0, %r0, 1;
    @%p0 bra USE;
    st.global.u32 [%a1], 5;
    {stored_before}
    {stored} [%a0], 1;
    bra DONE;
    USE:
    {loaded} %r1, [%a0];
    {loaded_behind}
    setp.ne.u32 %p1, %r1, 1;
    @%p1 bra DONE;
    ld.global.u32 %r2, [%a1];
    DONE:
    """


def blocks(name, body, grid=4, block=1, **settings):
    return Case(name, "global-race", body, grid=grid, block=block, **settings)


BLOCKS = [
    blocks(
        "the fence comes before what it is to publish",
        last_block(f"<membar.gl;||> {STORE} <||membar.gl;>", "membar.gl;"),
    ),
    blocks(
        "one of two stores is behind the fence",
        last_block(
            f"<||{STORE}> membar.gl; <{STORE}||>",
            "membar.gl;",
        ),
    ),
    blocks(
        "a fence of the block's scope",
        last_block(f"{STORE} membar.<cta||gl>;", "membar.gl;"),
    ),
    blocks(
        "a ticket of the block's scope",
        last_block(
            STORE, ticket="atom.acq_rel.<cta||gpu>.global.inc.u32 %r1, [%a0], 3;"
        ),
    ),
    blocks(
        "sums of the block's scope",
        "red.relaxed.<cta||gpu>.global.add.u32 [%a1], 1;",
    ),
    blocks(
        "a flag without a fence",
        handed_over(
            "st.relaxed.gpu.global.u32",
            "ld.relaxed.gpu.global.u32",
            "<||fence.acq_rel.gpu;>",
            "fence.acq_rel.gpu;",
        ),
        grid=2,
        under=IN_ORDER,
    ),
    blocks(
        "a flag that does not release",
        handed_over(
            "st.<relaxed||release>.gpu.global.u32", "ld.acquire.gpu.global.u32"
        ),
        grid=2,
        under=IN_ORDER,
    ),
    blocks(
        "a flag that does not acquire",
        handed_over(
            "st.release.gpu.global.u32", "ld.<relaxed||acquire>.gpu.global.u32"
        ),
        grid=2,
        under=IN_ORDER,
    ),
    blocks(
        "a volatile flag",
        handed_over(
            "st.volatile.global.u32",
            "ld.volatile.global.u32",
            "<||membar.gl;>",
            "<||membar.gl;>",
        ),
        grid=2,
        under=IN_ORDER,
    ),
    blocks(
        "a lock given back without a release",
        """
        atom.acquire.gpu.global.cas.b32 %r1, [%a0], 0, 1;
        ld.global.u32 %r2, [%a1];
        add.u32 %r2, %r2, 1;
        st.global.u32 [%a1], %r2;
        atom.<relaxed||release>.gpu.global.exch.b32 %r3, [%a0], 0;
        """,
    ),
    blocks(
        "the first of two readers releases nothing",
        """
        mov.u32 %r0, %ctaid.x;
        setp.eq.u32 %p0, %r0, 2;
        @%p0 bra LAST;
        ld.global.u32 %r1, [%a1];
        setp.ge.u32 %p1, %r0, <1||0>;
        @%p1 membar.gl;
        @%p1 red.global.add.u32 [%a0], 1;
        bra DONE;
        LAST:
        atom.global.add.u32 %r1, [%a0], 0;
        membar.gl;
        setp.ne.u32 %p2, %r1, <1||2>;
        @!%p2 st.global.u32 [%a1], 7;
        DONE:
        """,
        grid=3,
        under=IN_ORDER,
    ),
    blocks(
        "one lane's ticket for what all lanes have stored",
        """
        mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %d0, %r0, 128;
        add.s64 %d0, %d0, %g1;
        st.global.u32 [%d0], %r0;
        <||bar.warp.sync -1;>
        setp.eq.u32 %p1, %t, 0;
        @!%p1 bra ALL;
        membar.gl;
        atom.global.inc.u32 %r1, [%a0], 3;
        membar.gl;
        st.shared.u32 [%s], %r1;
        ALL:
        bar.sync 0;
        ld.shared.u32 %r1, [%s];
        setp.ne.u32 %p0, %r1, 3;
        @%p0 bra DONE;
        ld.global.u32 %r2, [%g1];
        ld.global.u32 %r2, [%g1+128];
        DONE:
        """,
        block=32,
    ),
    blocks(
        "all lanes make their fence, and one takes a ticket at once",
        """
        mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %d0, %r0, 128;
        add.s64 %d0, %d0, %g1;
        st.global.u32 [%d0], %r0;
        membar.gl;
        <||bar.warp.sync -1;>
        setp.eq.u32 %p1, %t, 0;
        @!%p1 bra ALL;
        atom.global.inc.u32 %r1, [%a0], 3;
        st.shared.u32 [%s], %r1;
        ALL:
        bar.sync 0;
        ld.shared.u32 %r1, [%s];
        setp.ne.u32 %p0, %r1, 3;
        @%p0 bra DONE;
        ld.global.u32 %r2, [%g1];
        ld.global.u32 %r2, [%g1+128];
        DONE:
        """,
        block=32,
    ),
    blocks(
        "the last of a block's warps adds up",
        """
        setp.ne.u32 %p0, %l, 0;
        @%p0 bra DONE;
        mul.wide.u32 %d0, %w, 4;
        add.s64 %d0, %d0, %a1;
        st.global.u32 [%d0], %w;
        <||membar.cta;>
        atom.global.inc.u32 %r1, [%a0], 1;
        membar.cta;
        setp.ne.u32 %p1, %r1, 1;
        @%p1 bra DONE;
        ld.global.u32 %r2, [%a1];
        ld.global.u32 %r2, [%a1+4];
        DONE:
        """,
        grid=1,
        block=64,
    ),
]

EVERY = [pytest.param(one, id=f"lanes: {one.name}") for one in LANES]
EVERY += [pytest.param(one, id=f"blocks: {one.name}") for one in BLOCKS]


@pytest.mark.parametrize("case", EVERY)
def test_what_is_wrong_is_found(case):
    require_found(case)


@pytest.mark.parametrize("case", EVERY)
def test_what_is_mended_is_clean(case):
    require_clean(case)
