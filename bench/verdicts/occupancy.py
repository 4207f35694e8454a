"""How many warps of a kernel fit on a multiprocessor at once, from what its compiled code asks for."""
from __future__ import annotations

from dataclasses import dataclass

REGISTERS = "registers"
SHARED = "shared memory"
BLOCKS = "blocks"
WARPS = "warps"


@dataclass(frozen=True)
class _Limits:
    """Per multiprocessor: CUDA C++ Programming Guide 13.0, "Compute Capabilities", technical specifications."""

    warps: int
    blocks: int
    registers: int
    shared_bytes: int


_LIMITS = {80: _Limits(64, 32, 65536, 164 * 1024), 90: _Limits(64, 32, 65536, 228 * 1024),
           100: _Limits(64, 32, 65536, 228 * 1024)}
_RESERVED_BYTES = 1024  # of shared memory, by the system, in each block
_WARP_REGISTERS = 256   # registers are given to a warp in such steps, and warps in fours
_WARP_STEP = 4


@dataclass(frozen=True)
class Occupancy:
    """Resident warps as a share of what the multiprocessor can hold, the blocks that makes, and what limits them."""

    share: float
    blocks: int
    limited_by: str


def occupancy(architecture: int, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """For blocks of `threads`, each with `registers`, and `shared_bytes` (static and dynamic) a block.

    Raises:
        ValueError: for an architecture whose limits are not known here, or a block that fits none.
    """
    if architecture not in _LIMITS:
        raise ValueError(f"the limits of sm_{architecture} are not known: {', '.join(f'sm_{a}' for a in _LIMITS)} are")
    limits = _LIMITS[architecture]
    warps = -(-threads // 32)
    of_a_warp = -(-registers * 32 // _WARP_REGISTERS) * _WARP_REGISTERS
    warps_by_registers = limits.registers // of_a_warp // _WARP_STEP * _WARP_STEP if of_a_warp else limits.warps
    blocks = {
        WARPS: limits.warps // warps,
        BLOCKS: limits.blocks,
        REGISTERS: warps_by_registers // warps,
        SHARED: limits.shared_bytes // (shared_bytes + _RESERVED_BYTES),
    }
    limited_by, fit = min(blocks.items(), key=lambda item: item[1])
    if not fit:
        raise ValueError(f"a block of {threads} threads with {registers} registers and {shared_bytes} B of shared "
                         f"memory does not fit on sm_{architecture}")
    return Occupancy(fit * warps / limits.warps, fit, limited_by)
