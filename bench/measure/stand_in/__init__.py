"""A stand-in for a GPU: what Batchline asks of torch.cuda, NVML and the compilers'
launches, answered without one.

Tensors of device "cuda" lie in host memory, torch's operations and the kernels' compiled
code, in emulation, compute them, and only the times are made up. It is unkinder than CUDA where that bites:
a launch's work is done when somebody waits for it or its stream goes on, memory is NaN
when it is handed out, a capture computes nothing and fails where CUDA's does, launches
fail on another device's memory, and there is less memory than a model takes. What it
can't be is in reports/methodology/limits.md.

A process has it from its start, by an environment variable: everything else runs as
with DEVICE=cuda.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

NAME = "stand-in"
VARIABLE = "BATCHLINE_STAND_IN"
WORDS = "stand-in: no time here was measured"
MARK = f"{NAME}: "  # of every line that a command prints
SAMPLES = 3  # by each clock but the one that ranks: an interval of the median takes twice as many
MOST_FLOPS, MOST_PROBES = (
    2e4,
    2,
)  # of a problem, and of a variant's check: compiling for it takes a second each


def is_on() -> bool:
    """Whether this process's GPU is the stand-in."""
    return bool(os.environ.get(VARIABLE))


def is_whole() -> bool:
    """Whether this process has all the variables of the stand-in."""
    return all(os.environ.get(name) == value for name, value in environment().items())


def environment() -> Mapping[str, str]:
    """The variables under which a new process has it."""
    return {VARIABLE: "1"}


def now_s() -> float:
    """Seconds on its host's clock, which goes on where work is queued and waited for."""
    from batchline.bench.measure.stand_in.timeline import CLOCK

    return CLOCK.now_s


def install() -> None:
    """Put it where torch.cuda and NVML are. Once, before anything has used them. The
    kernels' launches are bench.measure.emulator.on_stand_in's.
    """
    from batchline.bench.measure.stand_in import tensors, torch_cuda

    torch_cuda.install()
    tensors.install()
    torch_cuda.install_nvml()
