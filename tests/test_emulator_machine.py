"""What the emulator finds: for each kind of fault a kernel that has it, and its mended
twin, in which nothing is found.
"""

import pytest

from batchline.tests.emulated import Case, mbarrier, require_clean, require_found, wait

SWAP_HALVES = "xor.b32 %r0, %m, 128;"  # the word of a thread of another warp


MEMORY = [
    Case(
        "load",
        "out-of-bounds",
        """
        ld.global.u32 %r0, [%g0<+1024||+256>];
        st.global.u32 [%g1], %r0;
        """,
    ),
    Case(
        "store behind the end",
        "out-of-bounds",
        "st.global.u32 [%g1<+1000||+768>], %t;",
    ),
    Case("store before the start", "out-of-bounds", "st.global.u32 [%g1<-4||+0>], %t;"),
    Case(
        "vector store past the end by one word",
        "out-of-bounds",
        """
        setp.eq.u32 %p0, %t, 0;
        @%p0 st.global.v4.u32 [%a1+<1024||1008>], {%t, %t, %t, %t};
        """,
    ),
    Case("atomic", "out-of-bounds", "red.global.add.u32 [%g1<+1000||+0>], 1;"),
    Case(
        "cp.async",
        "out-of-bounds",
        """
        cp.async.ca.shared.global [%m], [%g0<+1024||+0>], 4;
        cp.async.wait_all;
        """,
    ),
    Case(
        "cp.async of 16 bytes, of which none is to be read",
        "out-of-bounds",
        """
        shl.b32 %r1, %t, 4;
        add.u32 %r1, %r1, %s;
        mov.u32 %r2, <16||0>;
        cp.async.cg.shared.global [%r1], [%a0+4096], 16, %r2;
        cp.async.wait_all;
        """,
    ),
    Case("shared load", "out-of-bounds", "st.shared.u32 [%m<+16300||+0>], %t;"),
    Case("shared store below 0", "out-of-bounds", "st.shared.u32 [%m<-4||+0>], %t;"),
    Case(
        "shared atomic",
        "out-of-bounds",
        """
        st.shared.u32 [%m], %t;
        red.shared.add.u32 [%m+<16384||0>], 1;
        """,
    ),
    Case(
        "an offset that overflows 32 bits",
        "out-of-bounds",
        """
        mul.lo.u32 %r0, %t, 134217728;
        <mul.lo.u32 %r1, %r0, 8; cvt.s64.s32 %d0, %r0; shl.b64 %d0, %d0, 1;
        || cvt.u64.u32 %d0, %t; shl.b64 %d0, %d0, 2; >
        add.s64 %d0, %a0, %d0;
        ld.global.u32 %r2, [%d0];
        st.global.u32 [%g1], %r2;
        """,
    ),
    Case(
        "a guard negated at the ragged end",
        "out-of-bounds",
        """
        setp.lt.u32 %p0, %t, 40;
        <@!%p0||@%p0> ld.global.u32 %r2, [%g0+864];
        """,
    ),
    Case(
        "local load",
        "out-of-bounds",
        """
        .local .align 4 .b8 mine[16];
        st.local.u32 [mine], %t;
        ld.local.u32 %r0, [mine+<1048576||0>];
        """,
    ),
    Case(
        "load of 8 bytes from a multiple of 4",
        "misaligned",
        "ld.global.u64 %d0, [%a0+<4||8>];",
    ),
    Case(
        "vector of a row whose stride is odd",
        "misaligned",
        """
        mul.wide.u32 %d0, %t, <12||16>;
        add.s64 %d0, %a0, %d0;
        ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%d0];
        """,
    ),
    Case("store", "misaligned", "st.global.u16 [%a1+<1||2>], 7;", block=32),
    Case(
        "shared vector",
        "misaligned",
        "st.shared.v2.u32 [%s+<4||8>], {0, 0};",
        block=32,
    ),
    Case("atomic", "misaligned", "red.global.add.u64 [%a1+<4||8>], 1;"),
    Case(
        "cp.async",
        "misaligned",
        """
        shl.b32 %r0, %t, 4;
        add.u32 %r0, %r0, %s;
        cp.async.cg.shared.global [%r0], [%a0+<8||16>], 16;
        cp.async.wait_all;
        """,
    ),
    Case(
        "global",
        "uninitialised-global",
        """
        <||st.global.u32 [%g1], %t;>
        ld.global.u32 %r0, [%g1];
        st.global.u32 [%g1], %r0;
        """,
        fresh=True,
    ),
    Case(
        "atomic on it",
        "uninitialised-global",
        """
        <||st.global.u32 [%g1], %t;>
        red.global.add.u32 [%g1], 1;
        """,
        fresh=True,
    ),
    Case(
        "shared",
        "uninitialised-shared",
        """
        <||st.shared.u32 [%m], 0;>
        ld.shared.u32 %r0, [%m];
        """,
    ),
    Case(
        "half of a shared word",
        "uninitialised-shared",
        """
        st.shared.u16 [%m], 0;
        <||st.shared.u16 [%m+2], 0;>
        ld.shared.u32 %r0, [%m];
        """,
    ),
]

RACES = [
    Case(
        "read after write",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        <bar.warp.sync -1;||bar.sync 0;>
        {SWAP_HALVES}
        ld.shared.u32 %r1, [%r0];
        st.global.u32 [%g1], %r1;
        """,
    ),
    Case(
        "write after read",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        bar.sync 0;
        {SWAP_HALVES}
        ld.shared.u32 %r1, [%r0];
        <||bar.sync 0;>
        st.shared.u32 [%m], %r1;
        """,
    ),
    Case(
        "write after write",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        <||bar.sync 0;>
        {SWAP_HALVES}
        st.shared.u32 [%r0], 5;
        """,
    ),
    Case(
        "two warps write one word",
        "shared-race",
        "mov.u32 %r1, <%w||7>; setp.eq.u32 %p0, %l, 0; @%p0 st.shared.u32 [%s], %r1;",
    ),
    Case(
        "two bytes of one word",
        "shared-race",
        """
        add.u32 %r0, %s, %w;
        <mov.u32 %r0, %s;||>
        setp.eq.u32 %p0, %l, 0;
        @%p0 st.shared.u8 [%r0], %w;
        """,
    ),
    Case(
        "a loop's second round one barrier short",
        "shared-race",
        f"""
        mov.u32 %r5, 0;
        L:
        st.shared.u32 [%m], %r5;
        bar.sync 0;
        {SWAP_HALVES}
        ld.shared.u32 %r1, [%r0];
        <||bar.sync 0;>
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p0, %r5, 3;
        @%p0 bra L;
        """,
    ),
    Case(
        "two stages in turn, as many barriers short",
        "shared-race",
        f"""
        mov.u32 %r5, 0;
        L:
        and.b32 %r6, %r5, <0||1>;
        shl.b32 %r6, %r6, 10;
        add.u32 %r7, %m, %r6;
        st.shared.u32 [%r7], %r5;
        bar.sync 0;
        {SWAP_HALVES}
        add.u32 %r0, %r0, %r6;
        ld.shared.u32 %r1, [%r0];
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p0, %r5, 6;
        @%p0 bra L;
        """,
    ),
    Case(
        "a named barrier of too few warps",
        "shared-race",
        """
        st.shared.u32 [%m], %t;
        setp.ge.u32 %p1, %w, 2;
        @%p1 bra OTHERS;
        bar.sync 1, 64;
        <||bar.sync 2, 128;>
        bra DONE;
        OTHERS:
        bar.sync 3, 64;
        <||bar.sync 2, 128;>
        DONE:
        xor.b32 %r0, %m, 256;
        ld.shared.u32 %r1, [%r0];
        """,
        block=128,
    ),
    Case(
        "producer that arrives before it writes",
        "shared-race",
        """
        setp.eq.u32 %p1, %w, 1;
        @%p1 bra USE;
        <bar.arrive 1, 64;||>
        st.shared.u32 [%m], %t;
        <||bar.arrive 1, 64;>
        bra DONE;
        USE:
        bar.sync 1, 64;
        ld.shared.u32 %r1, [%m-128];
        DONE:
        """,
    ),
    Case(
        "an atomic and a store",
        "shared-race",
        """
        setp.eq.u32 %p0, %t, 0;
        @%p0 st.shared.u32 [%s], 0;
        <||bar.sync 0;>
        red.shared.add.u32 [%s], 1;
        """,
    ),
    Case(
        "an atomic and a load",
        "shared-race",
        """
        setp.eq.u32 %p0, %t, 0;
        @%p0 st.shared.u32 [%s], 0;
        bar.sync 0;
        red.shared.add.u32 [%s], 1;
        <||bar.sync 0;>
        ld.shared.u32 %r0, [%s];
        """,
    ),
    Case(
        "stmatrix and a load",
        "shared-race",
        """
        shl.b32 %r0, %t, 4;
        add.u32 %r0, %s, %r0;
        stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r0], {%t, %t, %t, %t};
        <||bar.sync 0;>
        xor.b32 %r0, %r0, 512;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r0];
        """,
    ),
    Case(
        "warps of a block, global",
        "global-race",
        """
        st.global.u32 [%g1], %t;
        <||bar.sync 0;>
        xor.b32 %r0, %t, 32;
        mul.wide.u32 %d0, %r0, 4;
        add.s64 %d0, %d0, %a1;
        ld.global.u32 %r1, [%d0];
        """,
    ),
    Case(
        "a warp writes what two have read, global",
        "global-race",
        """
        ld.global.u32 %r1, [%a1];
        <||bar.sync 0;>
        setp.eq.u32 %p0, %t, 32;
        @%p0 st.global.u32 [%a1], %r1;
        """,
    ),
    Case(
        "two blocks write one tile",
        "global-race",
        """
        mov.u32 %r0, %ctaid.x;
        <shr.u32 %r0, %r0, 1;||>
        mul.wide.u32 %d0, %r0, 256;
        add.s64 %d0, %d0, %g1;
        st.global.u32 [%d0], %r0;
        """,
        grid=4,
    ),
    Case(
        "a block reads what another writes",
        "global-race",
        """
        mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %d0, %r0, 256;
        add.s64 %d0, %d0, %g1;
        st.global.u32 [%d0], %r0;
        ld.global.u32 %r1, [<%a1||%d0>];
        """,
        grid=4,
    ),
    Case(
        "a block overwrites what others read",
        "global-race",
        """
        mov.u32 %r0, %ctaid.x;
        setp.eq.u32 %p0, %r0, 1;
        ld.global.u32 %r1, [%a1];
        <@%p0||@!%p0> bra STORE;
        bra DONE;
        STORE:
        mul.wide.u32 %d0, %r0, <0||256>;
        add.s64 %d0, %d0, %a1;
        st.global.u32 [%d0+<0||4>], %r0;
        DONE:
        """,
        grid=4,
        block=1,
        size=1024,
    ),
    Case(
        "the last block adds up without a fence",
        "global-race",
        """
        mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %d0, %r0, 4;
        add.s64 %d0, %d0, %a1;
        st.global.u32 [%d0], %r0;
        <||membar.gl;>
        atom.global.inc.u32 %r1, [%a0], 3;
        setp.ne.u32 %p0, %r1, 3;
        @%p0 bra DONE;
        <||membar.gl;>
        ld.global.u32 %r2, [%a1];
        ld.global.u32 %r3, [%a1+4];
        ld.global.u32 %r4, [%a1+8];
        DONE:
        """,
        grid=4,
        block=1,
    ),
    Case(
        "the last block adds up, atomics that release and acquire",
        "global-race",
        """
        mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %d0, %r0, 4;
        add.s64 %d0, %d0, %a1;
        st.global.u32 [%d0], %r0;
        atom.<relaxed||acq_rel>.gpu.global.add.u32 %r1, [%a0], 1;
        setp.ne.u32 %p0, %r1, 3;
        @%p0 bra DONE;
        ld.global.u32 %r2, [%a1];
        ld.global.u32 %r3, [%a1+4];
        ld.global.u32 %r4, [%a1+8];
        DONE:
        """,
        grid=4,
        block=1,
    ),
    Case(
        "the last block's fence is behind the atomic only",
        "global-race",
        """
        mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %d0, %r0, 4;
        add.s64 %d0, %d0, %a1;
        st.global.u32 [%d0], %r0;
        <||fence.acq_rel.gpu;>
        atom.relaxed.gpu.global.add.u32 %r1, [%a0], 1;
        fence.acq_rel.gpu;
        setp.ne.u32 %p0, %r1, 3;
        @%p0 bra DONE;
        ld.global.u32 %r2, [%a1];
        ld.global.u32 %r3, [%a1+4];
        ld.global.u32 %r4, [%a1+8];
        DONE:
        """,
        grid=4,
        block=1,
    ),
    Case(
        "the last block's other threads go on without a barrier",
        "global-race",
        """
        mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %d0, %r0, 256;
        add.s64 %d0, %d0, %g1;
        st.global.u32 [%d0], %r0;
        membar.gl;
        <||bar.sync 0;>
        setp.eq.u32 %p1, %t, 0;
        @!%p1 bra ALL;
        atom.global.inc.u32 %r1, [%a0], 3;
        membar.gl;
        st.shared.u32 [%s], %r1;
        ALL:
        bar.sync 0;
        ld.shared.u32 %r1, [%s];
        setp.ne.u32 %p0, %r1, 3;
        @%p0 bra DONE;
        ld.global.u32 %r2, [%g1];
        ld.global.u32 %r2, [%g1+256];
        ld.global.u32 %r2, [%g1+512];
        ld.global.u32 %r2, [%g1+768];
        DONE:
        """,
        grid=4,
    ),
]

RACES += [
    Case(
        "lanes that write different words to one place",
        "shared-race",
        "mov.u32 %r0, <%l||7>; st.shared.u32 [%s], %r0;",
        block=32,
    ),
    Case(
        "lanes that write different words to one place, global",
        "global-race",
        "shr.u32 %r0, %l, <4||5>; st.global.u32 [%a1], %r0;",
        block=32,
    ),
]

COPIES = [
    Case(
        "cp.async read before it is waited for",
        "missing-wait",
        """
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.commit_group;
        <||cp.async.wait_group 0;>
        ld.shared.u32 %r1, [%m];
        st.global.u32 [%g1], %r1;
        """,
    ),
    Case(
        "one group too many is left open",
        "missing-wait",
        """
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%m+1024], [%g0+4], 4;
        cp.async.commit_group;
        cp.async.wait_group <2||1>;
        ld.shared.u32 %r1, [%m];
        cp.async.wait_all;
        """,
    ),
    Case(
        "what was never committed is not waited for",
        "missing-wait",
        """
        cp.async.ca.shared.global [%m], [%g0], 4;
        <||cp.async.commit_group;>
        cp.async.wait_group 0;
        ld.shared.u32 %r1, [%m];
        """,
    ),
    Case(
        "another warp's copy, without a barrier",
        "missing-wait",
        f"""
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.wait_all;
        <||bar.sync 0;>
        {SWAP_HALVES}
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    Case(
        "the barrier comes before the wait",
        "missing-wait",
        f"""
        cp.async.ca.shared.global [%m], [%g0], 4;
        <bar.sync 0;||>
        cp.async.wait_all;
        <||bar.sync 0;>
        {SWAP_HALVES}
        ld.shared.u32 %r1, [%r0];
        """,
    ),
    Case(
        "a copy into what another warp still reads",
        "shared-race",
        f"""
        st.shared.u32 [%m], %t;
        bar.sync 0;
        {SWAP_HALVES}
        ld.shared.u32 %r1, [%r0];
        <||bar.sync 0;>
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.wait_all;
        """,
    ),
    Case(
        "two copies to one place",
        "missing-wait",
        """
        cp.async.ca.shared.global [%m], [%g0], 4;
        <||cp.async.wait_all;>
        cp.async.ca.shared.global [%m], [%g0+4], 4;
        cp.async.wait_all;
        """,
    ),
    Case(
        "a pipeline of three stages whose wait is off by one",
        "missing-wait",
        """
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%m+1024], [%g0+4], 4;
        cp.async.commit_group;
        mov.u32 %r5, 0;
        L:
        cp.async.wait_group <2||1>;
        bar.sync 0;
        rem.u32 %r6, %r5, 3;
        shl.b32 %r6, %r6, 10;
        add.u32 %r6, %m, %r6;
        xor.b32 %r6, %r6, 128;
        ld.shared.u32 %r7, [%r6];
        add.u32 %r8, %r5, 2;
        rem.u32 %r8, %r8, 3;
        shl.b32 %r8, %r8, 10;
        add.u32 %r8, %m, %r8;
        setp.lt.u32 %p1, %r5, 4;
        @%p1 cp.async.ca.shared.global [%r8], [%g0+8], 4;
        cp.async.commit_group;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p0, %r5, 6;
        @%p0 bra L;
        """,
    ),
    Case(
        "a pipeline of three stages with too few barriers",
        "shared-race",
        """
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.commit_group;
        mov.u32 %r5, 0;
        L:
        and.b32 %r6, %r5, 1;
        xor.b32 %r8, %r6, 1;
        shl.b32 %r6, %r6, 10;
        shl.b32 %r8, %r8, 10;
        add.u32 %r6, %m, %r6;
        add.u32 %r8, %m, %r8;
        cp.async.ca.shared.global [%r8], [%g0+8], 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        bar.sync 0;
        xor.b32 %r6, %r6, 128;
        ld.shared.u32 %r7, [%r6];
        <||bar.sync 0;>
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p0, %r5, 6;
        @%p0 bra L;
        cp.async.wait_all;
        """,
    ),
]

BARRIERS = [
    Case(
        "half of a warp",
        "divergent-barrier",
        """
        setp.lt.u32 %p0, %l, 16;
        <@%p0||> bra SKIP;
        <||SKIP:>
        bar.sync 0;
        <SKIP:||>
        """,
        block=32,
    ),
    Case(
        "only where the end is ragged",
        "divergent-barrier",
        """
        setp.lt.u32 %p0, %t, 40;
        <@!%p0 bra SKIP;||>
        bar.sync 0;
        <SKIP:||>
        """,
    ),
    Case(
        "a count that is no multiple of a warp",
        "divergent-barrier",
        "bar.sync 1, <40||64>;",
    ),
    Case("no such barrier", "divergent-barrier", "bar.sync <16||15>;"),
    Case(
        "bar.warp.sync of lanes that are elsewhere",
        "divergent-barrier",
        """
        setp.lt.u32 %p0, %l, 16;
        @%p0 bra SKIP;
        bar.warp.sync <0xffffffff||0xffff0000>;
        SKIP:
        """,
        block=32,
    ),
    Case(
        "a shuffle in divergent flow",
        "divergent-barrier",
        """
        setp.lt.u32 %p0, %l, 16;
        @%p0 bra SKIP;
        shfl.sync.bfly.b32 %r0, %l, 1, 31, <0xffffffff||0xffff0000>;
        SKIP:
        """,
        block=32,
    ),
    Case(
        "a shuffle from a lane that takes no part",
        "divergent-barrier",
        """
        setp.lt.u32 %p0, %l, 16;
        @%p0 bra SKIP;
        shfl.sync.bfly.b32 %r0, %l, <16||8>, 31, 0xffff0000;
        SKIP:
        """,
        block=32,
    ),
    Case(
        "a named barrier that one warp never reaches",
        "deadlock",
        """
        setp.eq.u32 %p0, %w, 0;
        @!%p0 bra DONE;
        bar.sync 1, <64||32>;
        DONE:
        """,
    ),
    Case(
        "two groups of warps at one named barrier",
        "divergent-barrier",
        """
        setp.ge.u32 %p1, %w, 2;
        @%p1 bra OTHERS;
        bar.sync 1, 64;
        bra DONE;
        OTHERS:
        bar.sync <1||2>, 64;
        DONE:
        """,
        block=128,
    ),
    Case(
        "a warp that arrives again before the other has gone through",
        "divergent-barrier",
        """
        setp.eq.u32 %p1, %w, 1;
        @%p1 bra USE;
        bar.arrive 1, 64;
        <||bar.sync 2, 64;>
        bar.arrive 1, 64;
        bra DONE;
        USE:
        bar.sync 1, 64;
        <||bar.arrive 2, 64;>
        bar.sync 1, 64;
        DONE:
        """,
    ),
    Case(
        "two barriers in another order",
        "deadlock",
        """
        setp.eq.u32 %p0, %w, 0;
        <@!%p0||> bra SECOND;
        bar.sync 1, 64;
        bar.sync 2, 64;
        bra DONE;
        SECOND:
        bar.sync 2, 64;
        bar.sync 1, 64;
        DONE:
        """,
    ),
    Case(
        "a loop that never ends",
        "hang",
        "L: mov.u32 %r0, <0||1>; setp.eq.u32 %p0, %r0, 0; @%p0 bra L;",
        block=32,
    ),
]

MBARRIERS = [
    Case(
        "a phase that nobody completes",
        "deadlock",
        f"""{mbarrier(count="<3||2>")}
        setp.eq.u32 %p1, %l, 0;
        @%p1 mbarrier.arrive.shared::cta.b64 _, [%s];
        {wait(0)}
        """,
    ),
    Case(
        "not made",
        "mbarrier-misuse",
        f"""
        setp.eq.u32 %p0, %t, 0;
        <||@%p0 mbarrier.init.shared::cta.b64 [%s], 1;>
        bar.sync 0;
        @%p0 mbarrier.arrive.shared::cta.b64 _, [%s];
        {wait(0)}
        """,
    ),
    Case(
        "not made, and waited for",
        "mbarrier-misuse",
        f"""
        setp.eq.u32 %p0, %t, 0;
        @%p0 mbarrier.init.shared::cta.b64 [%s+<64||0>], 1;
        bar.sync 0;
        @%p0 mbarrier.arrive.shared::cta.b64 _, [%s+<64||0>];
        {wait(0)}
        """,
    ),
    Case(
        "an arrival that releases nothing",
        "shared-race",
        f"""{mbarrier(count=1)}
        setp.eq.u32 %p1, %t, 32;
        @%p1 st.shared.u32 [%s+512], 1;
        @%p1 mbarrier.arrive.<relaxed||release>.cta.shared::cta.b64 _, [%s];
        {wait(0)}
        ld.shared.u32 %r1, [%s+512];
        """,
    ),
    Case(
        "a warp that leaves and is waited for",
        "deadlock",
        f"""{mbarrier(count=2)}
        setp.eq.u32 %p2, %t, 0;
        setp.eq.u32 %p3, %t, 32;
        @%p2 mbarrier.arrive.shared::cta.b64 _, [%s];
        @%p3 mbarrier.arrive<||_drop>.shared::cta.b64 _, [%s];
        setp.eq.u32 %p4, %w, 1;
        @%p4 bra DONE;
        {wait(0)}
        @%p2 mbarrier.arrive.shared::cta.b64 _, [%s];
        {wait(1)}
        DONE:
        """,
    ),
    Case(
        "too many arrive",
        "mbarrier-misuse",
        f"""{mbarrier(count="<1||64>")}
        mbarrier.arrive.shared::cta.b64 _, [%s];
        """,
    ),
    Case(
        "expects none",
        "mbarrier-misuse",
        """
        setp.eq.u32 %p0, %t, 0;
        @%p0 mbarrier.init.shared::cta.b64 [%s], <0||1>;
        """,
    ),
    Case(
        "over another",
        "misaligned",
        """
        setp.eq.u32 %p0, %t, 0;
        @%p0 mbarrier.init.shared::cta.b64 [%s], 1;
        @%p0 mbarrier.init.shared::cta.b64 [%s+<4||8>], 1;
        """,
    ),
    Case(
        "written over",
        "mbarrier-misuse",
        f"""{mbarrier()}
        @%p0 st.shared.u32 [%s+<4||8>], 0;
        @%p0 mbarrier.arrive.shared::cta.b64 _, [%s];
        """,
    ),
    Case(
        "used before its maker is waited for",
        "shared-race",
        f"""
        setp.eq.u32 %p0, %t, 0;
        @%p0 mbarrier.init.shared::cta.b64 [%s], 2;
        <||bar.sync 0;>
        setp.eq.u32 %p1, %l, 0;
        @%p1 mbarrier.arrive.shared::cta.b64 _, [%s];
        {wait(0)}
        """,
        under=("late", "early"),
    ),
    Case(
        "the wrong parity lets the first round through",
        "shared-race",
        f"""{mbarrier()}
        setp.eq.u32 %p1, %w, 0;
        @!%p1 bra USE;
        st.shared.u32 [%m+64], %t;
        bar.warp.sync -1;
        @%p0 mbarrier.arrive.shared::cta.b64 _, [%s];
        bra DONE;
        USE:
        {wait("<1||0>")}
        ld.shared.u32 %r1, [%m-64];
        DONE:
        """,
    ),
    Case(
        "the parity does not change in the second round",
        "deadlock",
        f"""{mbarrier()}
        @%p0 mbarrier.init.shared::cta.b64 [%s+8], 1;
        bar.sync 0;
        mov.u32 %r5, 0;
        mov.u32 %r6, 0;
        setp.eq.u32 %p1, %w, 0;
        setp.eq.u32 %p2, %l, 0;
        @!%p1 bra USE;
        MAKE:
        xor.b32 %r7, %r6, 1;
        {wait("%r7", at="%s+8")}
        st.shared.u32 [%m+64], %r5;
        bar.warp.sync -1;
        @%p2 mbarrier.arrive.shared::cta.b64 _, [%s];
        xor.b32 %r6, %r6, 1;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p3, %r5, 4;
        @%p3 bra MAKE;
        bra DONE;
        USE:
        {wait("%r6")}
        ld.shared.u32 %r1, [%m-64];
        bar.warp.sync -1;
        @%p2 mbarrier.arrive.shared::cta.b64 _, [%s+8];
        xor.b32 %r6, %r6, <0||1>;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p3, %r5, 4;
        @%p3 bra USE;
        DONE:
        """,
    ),
]

# 128 threads, one warpgroup: A of ones at s, B of ones behind it, D in %f0 to %f3.
ONES = """
    shl.b32 %r0, %t, 4;
    add.u32 %r0, %r0, %s;
    mov.u32 %r1, 0x3c003c00;
    st.shared.v4.u32 [%r0], {%r1, %r1, %r1, %r1};
    setp.lt.u32 %p0, %t, 16;
    @%p0 st.shared.v4.u32 [%r0+2048], {%r1, %r1, %r1, %r1};
"""
DESCRIBED = """
    and.b32 %r2, %s, 0x3ffff;
    shr.u32 %r2, %r2, 4;
    cvt.u64.u32 %d0, %r2;
    or.b64 %d0, %d0, 0x0000001000080000;
    add.s64 %d1, %d0, 128;
    setp.eq.u32 %p1, %t, 9999;
    mov.f32 %f0, 0f00000000;
    mov.f32 %f1, 0f00000000;
    mov.f32 %f2, 0f00000000;
    mov.f32 %f3, 0f00000000;
"""
PRODUCT = (
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
    "{%f0, %f1, %f2, %f3}, %d0, %d1, %p1, 1, 1, 0, 0;"
)
READY = f"{ONES} fence.proxy.async; bar.sync 0; {DESCRIBED}"
MATRICES = [
    Case(
        "accumulators read before the wait",
        "missing-wait",
        f"""{READY}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        <||wgmma.wait_group.sync.aligned 0;>
        st.global.f32 [%g1], %f0;
        """,
        block=128,
    ),
    Case(
        "one group too many in flight",
        "missing-wait",
        f"""{READY}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned <1||0>;
        st.global.f32 [%g1], %f0;
        """,
        block=128,
    ),
    Case(
        "not committed",
        "missing-wait",
        f"""{READY}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        <||wgmma.commit_group.sync.aligned;>
        wgmma.wait_group.sync.aligned 0;
        st.global.f32 [%g1], %f0;
        """,
        block=128,
    ),
    Case(
        "an accumulator is written while it is in flight",
        "missing-wait",
        f"""{READY}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        <||wgmma.wait_group.sync.aligned 0;>
        mov.f32 %f1, 0f00000000;
        <wgmma.wait_group.sync.aligned 0;||>
        """,
        block=128,
    ),
    Case(
        "operands overwritten before the wait",
        "missing-wait",
        f"""{READY}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        <||wgmma.wait_group.sync.aligned 0;>
        bar.sync 0;
        st.shared.u32 [%m], %t;
        <wgmma.wait_group.sync.aligned 0;||>
        """,
        block=128,
    ),
    Case(
        "another warp overwrites operands: a barrier short",
        "missing-wait",
        f"""{READY}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        <||bar.sync 0;>
        st.shared.u32 [%m], %t;
        """,
        block=128,
    ),
    Case(
        "no fence before the first",
        "missing-fence",
        f"""{READY}
        <||wgmma.fence.sync.aligned;>
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "no fence after the accumulators were changed",
        "missing-fence",
        f"""{READY}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        add.f32 %f0, %f0, %f0;
        <||wgmma.fence.sync.aligned;>
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "no proxy fence behind the stores",
        "missing-proxy-fence",
        f"""{ONES} <||fence.proxy.async;> bar.sync 0; {DESCRIBED}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "the proxy fence of the reader alone is behind no barrier",
        "shared-race",
        f"""{ONES} fence.proxy.async; <||bar.sync 0;> {DESCRIBED}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "cp.async feeds it, and no proxy fence",
        "missing-proxy-fence",
        f"""
        shl.b32 %r0, %t, 4;
        mul.wide.u32 %d3, %t, 16;
        add.s64 %d3, %d3, %a0;
        add.u32 %r0, %r0, %s;
        cp.async.cg.shared.global [%r0], [%d3], 16;
        setp.lt.u32 %p0, %t, 16;
        @%p0 cp.async.cg.shared.global [%r0+2048], [%d3], 16;
        cp.async.wait_all;
        <||fence.proxy.async;>
        bar.sync 0; {DESCRIBED}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
        size=512,
    ),
    Case(
        "a descriptor with reserved bits",
        "bad-descriptor",
        f"""{READY}
        or.b64 %d1, %d1, <0x4000||0>;
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "a descriptor that leads out of shared memory",
        "out-of-bounds",
        f"""{READY}
        add.s64 %d1, %d1, <1000||0>;
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "a descriptor whose stride leads to bytes that nothing wrote",
        "uninitialised-shared",
        f"""{READY}
        xor.b64 %d0, %d0, <0x0000003000000000||0>;
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "wgmma in divergent flow",
        "divergent-barrier",
        f"""{READY}
        wgmma.fence.sync.aligned;
        setp.lt.u32 %p4, %l, 16;
        <@%p4||> bra IT;
        bra DONE;
        IT:
        {PRODUCT}
        DONE:
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
]

# 128 threads, one warpgroup: A in registers, B of ones at s.
FROM_REGISTERS = (
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
    "{%f0, %f1, %f2, %f3}, {%r10, %r11, %r12, %r13}, %d1, %p1, 1, 1, 0;"
)
A_IN_REGISTERS = "".join(f"mov.u32 %r{place}, %r1;" for place in range(10, 14))
MATRICES += [
    Case(
        "A's registers are changed while they are read",
        "missing-wait",
        f"""{READY} {A_IN_REGISTERS}
        wgmma.fence.sync.aligned;
        {FROM_REGISTERS}
        wgmma.commit_group.sync.aligned;
        <||wgmma.wait_group.sync.aligned 0;>
        mov.u32 %r12, 0;
        <wgmma.wait_group.sync.aligned 0;||>
        """,
        block=128,
    ),
    Case(
        "A's registers are loaded behind the fence",
        "missing-fence",
        f"""{READY} {A_IN_REGISTERS}
        <wgmma.fence.sync.aligned;||>
        ld.shared.u32 %r13, [%s];
        <||wgmma.fence.sync.aligned;>
        {FROM_REGISTERS}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "the proxy fence comes before the stores",
        "missing-proxy-fence",
        f"""<fence.proxy.async;||> {ONES} <||fence.proxy.async;> bar.sync 0; {DESCRIBED}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "stores between the first product and the second, and no proxy fence",
        "missing-proxy-fence",
        f"""{READY}
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        bar.sync 0;
        {ONES}
        <||fence.proxy.async;>
        bar.sync 0;
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        """,
        block=128,
    ),
    Case(
        "two warps of the group skip the product",
        "divergent-barrier",
        f"""{READY}
        setp.lt.u32 %p4, %w, 2;
        <@!%p4 bra DONE;||>
        wgmma.fence.sync.aligned;
        {PRODUCT}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        DONE:
        """,
        block=128,
    ),
    Case(
        "a row of ldmatrix in the middle of 16 bytes",
        "misaligned",
        """
        shl.b32 %r0, %t, 4;
        add.u32 %r0, %s, %r0;
        st.shared.v4.u32 [%r0], {%t, %t, %t, %t};
        bar.warp.sync -1;
        setp.eq.u32 %p0, %t, 7;
        @%p0 sub.u32 %r0, %r0, <8||16>;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r0];
        """,
        block=32,
    ),
]

MEMORY += [
    Case(
        "an atomic behind the end, within its last 16 bytes",
        "out-of-bounds",
        "red.global.add.u32 [%a1+<1020||1016>], 1;",
        block=1,
        size=255,
    ),
    Case(
        "a tail that nobody has filled",
        "uninitialised-shared",
        """
        setp.lt.u32 %p0, %t, 40;
        st.shared.u32 [%m+256], 0;
        <@%p0||> st.shared.u32 [%m], %t;
        bar.sync 0;
        ld.shared.u32 %r1, [%m];
        """,
    ),
    Case(
        "a vector whose last element is behind the end",
        "out-of-bounds",
        """
        mul.wide.u32 %d0, %t, 16;
        add.s64 %d0, %a1, %d0;
        setp.lt.u32 %p0, %t, <64||63>;
        @%p0 st.global.v4.u32 [%d0], {%t, %t, %t, %t};
        """,
        size=255,
    ),
    Case(
        "a stride that is only right where rows touch",
        "out-of-bounds",
        """
        mul.lo.u32 %r0, %t, <5||4>;
        mul.wide.u32 %d0, %r0, 4;
        add.s64 %d0, %a0, %d0;
        ld.global.u32 %r1, [%d0];
        """,
    ),
    Case(
        "generic addresses of shared memory, one lane's elsewhere",
        "out-of-bounds",
        """
        st.shared.u32 [%m], %t;
        cvt.u64.u32 %d0, %m;
        cvta.shared.u64 %d0, %d0;
        setp.eq.u32 %p0, %t, 9;
        <@%p0 mov.u64 %d0, %o;||>
        ld.u32 %r1, [%d0];
        """,
    ),
]

COPIES += [
    Case(
        "the last rounds of a pipeline commit nothing",
        "missing-wait",
        """
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.commit_group;
        mov.u32 %r5, 0;
        L:
        and.b32 %r6, %r5, 1;
        xor.b32 %r8, %r6, 1;
        shl.b32 %r6, %r6, 10;
        shl.b32 %r8, %r8, 10;
        add.u32 %r6, %m, %r6;
        add.u32 %r8, %m, %r8;
        setp.lt.u32 %p1, %r5, 4;
        @%p1 cp.async.ca.shared.global [%r8], [%g0], 4;
        <@%p1||> cp.async.commit_group;
        cp.async.wait_group 1;
        bar.sync 0;
        ld.shared.u32 %r7, [%r6];
        bar.sync 0;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p0, %r5, 5;
        @%p0 bra L;
        """,
    ),
    Case(
        "stages that overlap",
        "missing-wait",
        """
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%m+<128||256>], [%g0], 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        bar.sync 0;
        ld.shared.u32 %r1, [%m];
        cp.async.wait_all;
        """,
    ),
    Case(
        "a copy's wait in half of the block",
        "missing-wait",
        f"""
        cp.async.ca.shared.global [%m], [%g0], 4;
        cp.async.commit_group;
        setp.eq.u32 %p0, %w, 0;
        <@%p0 bra WAITED;||>
        cp.async.wait_group 0;
        WAITED:
        bar.sync 0;
        {SWAP_HALVES}
        ld.shared.u32 %r1, [%r0];
        """,
    ),
]

MBARRIERS += [
    Case(
        "a maker that does not wait until its stage is free",
        "deadlock",
        f"""{mbarrier()}
        @%p0 mbarrier.init.shared::cta.b64 [%s+8], 1;
        bar.sync 0;
        mov.u32 %r5, 0;
        mov.u32 %r6, 0;
        setp.eq.u32 %p1, %w, 0;
        setp.eq.u32 %p2, %l, 0;
        @!%p1 bra USE;
        MAKE:
        xor.b32 %r7, %r6, 1;
        <||{wait("%r7", at="%s+8")}>
        st.shared.u32 [%m+64], %r5;
        bar.warp.sync -1;
        @%p2 mbarrier.arrive.shared::cta.b64 _, [%s];
        xor.b32 %r6, %r6, 1;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p3, %r5, 4;
        @%p3 bra MAKE;
        bra DONE;
        USE:
        {wait("%r6")}
        ld.shared.u32 %r1, [%m-64];
        bar.warp.sync -1;
        @%p2 mbarrier.arrive.shared::cta.b64 _, [%s+8];
        xor.b32 %r6, %r6, 1;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p3, %r5, 4;
        @%p3 bra USE;
        DONE:
        """,
    ),
    Case(
        "all lanes arrive where one is expected",
        "mbarrier-misuse",
        f"""{mbarrier()}
        setp.eq.u32 %p1, %w, 0;
        @!%p1 bra USE;
        st.shared.u32 [%m+64], %t;
        bar.warp.sync -1;
        <||@%p0> mbarrier.arrive.shared::cta.b64 _, [%s];
        bra DONE;
        USE:
        {wait(0)}
        ld.shared.u32 %r1, [%m-64];
        DONE:
        """,
    ),
]

BARRIERS += [
    Case(
        "a barrier that counts a warp too many",
        "deadlock",
        """
        setp.ge.u32 %p0, %w, 2;
        @%p0 bra DONE;
        bar.sync 1, <96||64>;
        DONE:
        """,
        block=96,
    ),
    Case(
        "a vote in divergent flow, of all lanes",
        "divergent-barrier",
        """
        setp.lt.u32 %p0, %l, 7;
        @!%p0 bra DONE;
        vote.sync.ballot.b32 %r0, %p0, <0xffffffff||0x7f>;
        DONE:
        """,
        block=32,
    ),
    Case(
        "a barrier in a loop of as many rounds as each warp wants",
        "deadlock",
        """
        mov.u32 %r0, 0;
        L:
        bar.sync 1, 64;
        add.u32 %r0, %r0, 1;
        setp.le.u32 %p0, %r0, <%w||1>;
        @%p0 bra L;
        """,
    ),
]

EVERY = [
    pytest.param(case, id=f"{case.word}: {case.name}")
    for case in MEMORY + RACES + COPIES + BARRIERS + MBARRIERS + MATRICES
]


@pytest.mark.parametrize("case", EVERY)
def test_what_is_wrong_is_found(case):
    require_found(case)


@pytest.mark.parametrize("case", EVERY)
def test_what_is_mended_is_clean(case):
    require_clean(case)
