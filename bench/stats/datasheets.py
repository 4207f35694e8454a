"""What GPUs can do by their datasheets: the rates that a prediction divides counts by.

Sources: NVIDIA's A100 80GB, H100, H200 and HGX B200 datasheets (memory, products
without sparsity, fp32); the H100 whitepaper and the CUDA C++ Programming Guide 13.0,
"Arithmetic Instructions" (fp32 lanes of a multiprocessor) and "Compute Capabilities"
(four warp schedulers, 32 banks of 4 bytes). What L2 gives a multiprocessor is in no
datasheet: 64 bytes a cycle are the width of its port, as micro-benchmarks find it since
Volta (Jia et al., arXiv 1804.06826).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_TERA = 1e12


@dataclass(frozen=True)
class Datasheet:
    """A GPU's rates, at its boost clock.

    Args:
        architecture: 90 of sm_90.
        multiprocessors: SMs.
        clock_hz: the highest clock of an SM.
        memory_bytes_per_s: of device memory.
        matrix_flops_per_s: of dense products, by the type of their elements, as PTX
            names it ("bf16", "tf32", "e4m3").
        fma_flops_per_s: of fp32 multiply-adds outside the tensor cores.
        float_warps_per_cycle: fp32 instructions of a warp that an SM starts in a cycle.
        issued_per_cycle: instructions of a warp that an SM issues in a cycle.
        l2_bytes_per_cycle: from L2 to an SM.
    """

    name: str
    architecture: int
    multiprocessors: int
    clock_hz: float
    memory_bytes_per_s: float
    matrix_flops_per_s: Mapping[str, float]
    fma_flops_per_s: float
    float_warps_per_cycle: int
    issued_per_cycle: int = 4
    l2_bytes_per_cycle: int = 64


def _matrix(half: float, fp8: float | None = None) -> dict[str, float]:
    """tf32 has half the rate of 16 bits on each of these."""
    rates = {"f16": half, "bf16": half, "tf32": half / 2}
    return rates | ({} if fp8 is None else {"e4m3": fp8, "e5m2": fp8})


_HOPPER = _matrix(989.4 * _TERA, 1978.9 * _TERA)
DATASHEETS = (
    Datasheet(
        "A100", 80, 108, 1.41e9, 2.039 * _TERA, _matrix(312 * _TERA), 19.5 * _TERA, 2
    ),
    Datasheet("H100", 90, 132, 1.98e9, 3.35 * _TERA, _HOPPER, 66.9 * _TERA, 4),
    Datasheet("H200", 90, 132, 1.98e9, 4.8 * _TERA, _HOPPER, 66.9 * _TERA, 4),
    Datasheet(
        "B200",
        100,
        148,
        1.965e9,
        8.0 * _TERA,
        _matrix(2250 * _TERA, 4500 * _TERA),
        75 * _TERA,
        4,
    ),
)
