"""Occupancy from compiled facts, against values of NVIDIA's own calculator."""
import pytest

from bench.verdicts.occupancy import BLOCKS, REGISTERS, SHARED, WARPS, occupancy


@pytest.mark.parametrize("architecture, threads, registers, shared, share, blocks, limited_by", [
    (90, 256, 110, 98304, 0.25, 2, REGISTERS),   # 112 x 32 a warp: 18 warps fit, given in fours 16
    (90, 256, 32, 0, 1.0, 8, WARPS),
    (90, 32, 16, 0, 0.5, 32, BLOCKS),
    (90, 128, 32, 100 * 1024, 0.125, 2, SHARED),
    (80, 128, 32, 100 * 1024, 0.0625, 1, SHARED),
    (80, 1024, 64, 0, 0.5, 1, REGISTERS),
    (100, 384, 168, 213 * 1024, 0.1875, 1, REGISTERS),
])
def test_occupancy(architecture, threads, registers, shared, share, blocks, limited_by):
    found = occupancy(architecture, threads, registers, shared)
    assert (found.share, found.blocks, found.limited_by) == (share, blocks, limited_by)


def test_what_fits_nowhere_and_what_is_not_known_are_refused():
    with pytest.raises(ValueError, match="does not fit on sm_90"):
        occupancy(90, 1024, 255, 0)
    with pytest.raises(ValueError, match="limits of sm_75 are not known: sm_80, sm_90, sm_100 are"):
        occupancy(75, 32, 16, 0)
