"""Occupancy from compiled facts, against values of NVIDIA's own calculator (the
toolkit's cuda_occupancy.h).
"""

import pytest

from batchline.bench.stats.roofline import BLOCKS, REGISTERS, SHARED, WARPS, occupancy


@pytest.mark.parametrize(
    "architecture, threads, registers, shared, share, blocks, limited_by",
    [
        (
            90,
            256,
            110,
            98304,
            0.25,
            2,
            REGISTERS,
        ),  # 112 x 32 a warp: 18 warps fit, given in fours 16
        (90, 256, 32, 0, 1.0, 8, WARPS),
        (90, 32, 16, 0, 0.5, 32, BLOCKS),
        (90, 128, 32, 100 * 1024, 0.125, 2, SHARED),
        (80, 128, 32, 100 * 1024, 0.0625, 1, SHARED),
        (80, 1024, 64, 0, 0.5, 1, REGISTERS),
        (100, 384, 168, 213 * 1024, 0.1875, 1, REGISTERS),
        (86, 32, 16, 0, 16 / 48, 16, BLOCKS),
        (89, 32, 16, 0, 0.5, 24, BLOCKS),
        (120, 32, 16, 0, 0.5, 24, BLOCKS),
        (86, 256, 40, 0, 1.0, 6, WARPS),
        (86, 1024, 32, 0, 32 / 48, 1, WARPS),
        (120, 128, 168, 48 * 1024, 8 / 48, 2, SHARED),
        (86, 128, 32, 99 * 1024, 4 / 48, 1, SHARED),
        (89, 96, 168, 0, 12 / 48, 4, REGISTERS),
        (
            90,
            64,
            16,
            10646,
            38 / 64,
            19,
            SHARED,
        ),  # given in steps of 128 bytes: else 20 would fit
    ],
)
def test_occupancy(architecture, threads, registers, shared, share, blocks, limited_by):
    found = occupancy(architecture, threads, registers, shared)
    assert (found.share, found.blocks, found.limited_by) == (share, blocks, limited_by)


def test_what_fits_nowhere_and_what_is_not_known_are_refused():
    with pytest.raises(ValueError, match="does not fit on sm_90"):
        occupancy(90, 1024, 255, 0)
    with pytest.raises(ValueError, match="does not fit on sm_120"):
        occupancy(120, 128, 32, 99 * 1024 + 1)
    with pytest.raises(ValueError, match="does not fit on sm_90"):
        occupancy(
            90, 32 * 9, 200, 0
        )  # 10 warps have registers, but two in each of four partitions, and one in none
    with pytest.raises(
        ValueError, match="sm_75 is none of sm_80, sm_86, sm_89, sm_90, sm_100, sm_120"
    ):
        occupancy(75, 32, 16, 0)
