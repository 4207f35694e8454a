"""The arrays of shared memory, laid out apart, and a thread's own arrays."""

import numpy as np
import pytest

from batchline.bench.measure.emulator.ptx import Variable
from batchline.bench.measure.emulator.shared_arrays import lay_out_shared
from batchline.tests.emulated import (
    Case,
    buffer,
    require_clean,
    require_found,
    run,
    words,
)

DYNAMIC = ".extern .shared .align 16 .b8 dynamic[];"
TWO_ARRAYS = """
.shared .align 4 .b8 first[256];
.shared .align 4 .b8 second[256];
"""

CASES = [
    Case(
        "a store one word past an array that another follows",
        "out-of-bounds",
        f"""
        {TWO_ARRAYS}
        mov.u32 %r0, first;
        shl.b32 %r1, %t, 2;
        add.u32 %r0, %r0, %r1;
        st.shared.u32 [%r0+<4||0>], %t;
        """,
    ),
    Case(
        "a load one word before an array that follows another",
        "out-of-bounds",
        f"""
        {TWO_ARRAYS}
        mov.u32 %r0, second;
        shl.b32 %r1, %t, 2;
        add.u32 %r0, %r0, %r1;
        st.shared.u32 [%r0], %t;
        ld.shared.u32 %r2, [%r0<-4||+0>];
        """,
    ),
    Case(
        "an atomic by a generic address",
        "out-of-bounds",
        f"""
        {TWO_ARRAYS}
        mov.u64 %d0, first;
        cvta.shared.u64 %d0, %d0;
        st.u32 [%d0], 0;
        red.add.u32 [%d0+<256||0>], 1;
        """,
        block=1,
    ),
    Case(
        "cp.async",
        "out-of-bounds",
        f"""
        {TWO_ARRAYS}
        mov.u32 %r0, first;
        shl.b32 %r1, %t, 2;
        add.u32 %r0, %r0, %r1;
        cp.async.ca.shared.global [%r0+<4||0>], [%g0], 4;
        cp.async.wait_all;
        """,
    ),
    Case(
        "an mbarrier",
        "out-of-bounds",
        """
        .shared .align 8 .b8 first[8];
        .shared .align 8 .b8 second[8];
        mov.u32 %r0, first;
        mbarrier.init.shared::cta.b64 [%r0+<8||0>], 1;
        """,
        block=1,
    ),
    Case(
        "local memory that nothing has written",
        "uninitialised-local",
        """
        .local .align 4 .b8 mine[16];
        st.local.u32 [mine+<4||0>], %t;
        ld.local.u32 %r0, [mine];
        """,
    ),
    Case(
        "local memory of which half is written, by a generic address",
        "uninitialised-local",
        """
        .local .align 8 .b8 mine[16];
        mov.u64 %d0, mine;
        cvta.local.u64 %d0, %d0;
        st.u32 [%d0], %t;
        <||st.u32 [%d0+4], %t;>
        ld.u64 %d1, [%d0];
        """,
    ),
    Case(
        "local memory that another lane has written",
        "uninitialised-local",
        """
        .local .align 4 .b8 mine[16];
        setp.lt.u32 %p0, %l, <31||32>;
        @%p0 st.local.u32 [mine], %t;
        ld.local.u32 %r0, [mine];
        """,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_a_fault_is_found(case):
    require_found(case)


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_nothing_is_found_in_its_mended_twin(case):
    require_clean(case)


@pytest.mark.parametrize("offset, found", [(252, set()), (256, {"out-of-bounds"})])
def test_dynamic_memory_ends_where_the_launch_says(offset, found):
    body = f"mov.u32 %r0, dynamic; st.shared.u32 [%r0+{offset}], 7;"
    assert words(run(body, module=DYNAMIC, dynamic=256, block=1)) == found


def test_an_array_does_not_reach_into_dynamic_memory():
    body = "st.shared.u32 [%s+64], 7;"
    done = run(body, module=DYNAMIC, shared=64, dynamic=256, block=1)
    assert words(done) == {"out-of-bounds"}


def test_all_arrays_without_a_size_share_their_place():
    module = f"{DYNAMIC} .extern .shared .align 16 .b8 other[];"
    body = """
    mov.u32 %r0, dynamic;
    mov.u32 %r1, other;
    st.shared.u32 [%r0], 7;
    ld.shared.u32 %r2, [%r1];
    st.global.u32 [%g0], %r2;
    """
    result = buffer(1)
    done = run(body, result, module=module, dynamic=16, block=1)
    assert not done.findings and result[0] == 7


def test_what_a_gpu_counts_has_no_red_zones():
    body = f"{TWO_ARRAYS} mov.u32 %r0, %total_smem_size; st.global.u32 [%g0], %r0;"
    result = buffer(1)
    run(body, result, module=DYNAMIC, shared=100, dynamic=16, block=1)
    assert result[0] == 100 + 256 + 256 + 16


@pytest.mark.parametrize("sizes", [(100, 256, 4), (8, 1024, 3000), (1, 1, 1)])
@pytest.mark.parametrize("align", [4, 16, 128, 2048])
def test_offsets_stay_in_their_banks_and_swizzled_rows(sizes, align):
    arrays = [
        Variable(f"a{number}", "shared", "b8", size, align)
        for number, size in enumerate(sizes)
    ]
    layout = lay_out_shared(arrays)
    packed = 0
    for one in arrays:
        packed = -(-packed // align) * align
        assert (layout.offsets[one.name] - packed) % max(1024, align) == 0
        packed += one.size_bytes
    assert layout.static_bytes == packed
    ends = np.array([start + size for start, size in layout.arrays])
    starts = np.array([start for start, _ in layout.arrays])
    assert (starts[1:] - ends[:-1] >= 1024).all()
