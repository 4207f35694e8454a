"""Descriptors of matrices in shared memory, as the tensor cores of sm_100 read them (PTX
ISA, "Shared memory descriptor" of tcgen05).
"""

from __future__ import annotations

import numpy as np

from batchline.bench.measure.emulator.matrix import why_descriptor_invalid
from batchline.bench.measure.emulator.native import (
    compile_for_python,
    compile_native,
)

VALID, INVALID, NOT_KNOWN = range(3)
_CONSTANT = 1 << 46  # bits 46 to 48 are 1


@compile_for_python
def why_matrix_invalid(descriptor):
    """VALID, INVALID or NOT_KNOWN: of a 64-bit descriptor of a matrix in shared memory.

    Bits 0 to 13, 16 to 29, 32 to 45 and 49 to 51 are as wgmma's; bits 46 to 48 are 1;
    52 says that the leading dimension is an address; 53 to 60 are 0; 61 to 63 are the
    swizzle mode: 0 none, 2 of 128 bytes, 4 of 64, 6 of 32, and 1 of 128 bytes in pieces
    of 32.
    """
    descriptor = np.int64(descriptor)
    mode = descriptor >> 61 & 7
    if descriptor >> 46 & 7 != 1 or descriptor >> 53 & 0xFF:
        return INVALID
    if mode in (3, 5, 7) or why_descriptor_invalid(as_of_wgmma(descriptor)):
        return INVALID
    return NOT_KNOWN if mode == 1 or descriptor >> 52 & 1 else VALID


@compile_native
def as_of_wgmma(descriptor):
    """The descriptor that wgmma would be given: its swizzle modes are those of bits 62
    and 63 here.
    """
    return descriptor & ~(np.int64(1) << 61 | np.int64(1) << 52 | np.int64(_CONSTANT))
