"""Kernels that were wrong, or did more than they had to, in ways that only the compiled
code shows: executed in emulation.
"""

import pytest

from batchline.bench.measure.compiled import compiler
from batchline.bench.measure.emulator import subjects
from batchline.bench.measure.emulator.execution import LATE
from batchline.bench.measure.emulator.subjects import Subject

pytestmark = pytest.mark.skipif(
    bool(compiler.why_cannot_compile("triton")), reason="needs Triton's compiler"
)


def require_right(*subject, schedule=LATE):
    """Execute a subject (variant, dtype, probe, architecture) → its verdict."""
    verdict = subjects.verdict_of(Subject(*subject), schedule)
    assert verdict.wrong is None
    assert [str(one) for one in verdict.findings if one.is_fault] == []
    return verdict


@pytest.mark.parametrize("probe", ["ragged", "transposed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hints_of_a_branch_do_not_hold_in_the_other(dtype, probe):
    require_right("grad_reduce_multi/triton_one_launch", dtype, probe, 90)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_both_groups_write_their_own_rows_of_a_tile(dtype):
    require_right("bmm/triton_warp_specialized", dtype, "aligned_tiles_tn", 90)
