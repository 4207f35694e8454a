"""Every clock on the same three launches, with NVBench's figures beside them where its
package is there.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch

from batchline.bench import units
from batchline.bench.cases import CLOCKS
from batchline.bench.measure import nvbench, stand_in
from batchline.bench.measure.clocks import make_clock
from batchline.bench.measure.hardware import hardware
from batchline.bench.measure.sampling import Effort, Samples, sample
from batchline.bench.measure.state import state_of

WRITTEN = "device_cold, L2 written alone"  # and so written back within the samples
_EFFORT = Effort(0.002, 2.0, most=2000)
_NVBENCH_S = 4.0


def clocks(device: str, machine) -> dict[str, object]:
    """The names of the clocks, and the hardware that each is made for: on CUDA also the
    cold one as NVBench has it.
    """
    named = dict.fromkeys(CLOCKS[device], machine)
    if device == "cuda":
        named[WRITTEN] = copy.copy(machine)
        named[WRITTEN].flush = machine.flush_by_writing
    return named


def launches(device: str) -> dict[str, Callable[[], object]]:
    """torch.bmm of one 256³ and one 4096³ product, and torch.mean over 1 GiB of
    gradients; less on the stand-in.
    """
    sizes, columns = ((16, 64), 2**8) if stand_in.is_on() else ((256, 4096), 2**18)
    dtype = torch.float16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return (
            torch.rand(*shape, generator=generator, device=device, dtype=torch.float32)
            .mul_(2)
            .sub_(1)
            .to(dtype)
        )

    name = str(dtype).removeprefix("torch.")
    products = {
        f"torch.bmm {size}³ {name}": functools.partial(
            torch.bmm,
            draw(1, size, size, dtype=dtype),
            draw(1, size, size, dtype=dtype),
        )
        for size in sizes
    }
    gradients = draw(1024, columns, dtype=torch.float32)
    name = f"torch.mean over {units.size(gradients.nbytes)} float32"
    return products | {name: functools.partial(torch.mean, gradients, 0)}


def measure(device: str) -> dict:
    """{launch: {clock: {"median_s", "precision", "samples"} or {"error"}, "nvbench":
    its figures}}.
    """
    machine, state, effort = hardware(device), state_of(device), _EFFORT
    chosen = launches(device)
    found: dict[str, dict] = {}
    for name, launch in chosen.items():
        for _ in range(3):
            start_s = machine.now_s()
            launch()
            machine.synchronize()
            call_s = machine.now_s() - start_s
        found[name] = {}
        for clock, on in clocks(device, machine).items():
            try:
                made = make_clock(
                    "device_cold" if clock == WRITTEN else clock,
                    on,
                    [launch],
                    call_s,
                    effort.sample_s,
                )
                taken = sample(
                    {name: made}, effort, state.why_throttled, now_s=machine.now_s
                )[name]
            except Exception as error:  # a clock that fails is a row too
                taken = error
            found[name][clock] = _facts(taken)
    beside = nvbench.times(chosen, _NVBENCH_S) if device == "cuda" else {}
    return {
        name: facts | ({"nvbench": beside[name]} if name in beside else {})
        for name, facts in found.items()
    }


def _facts(taken: Samples | BaseException) -> dict:
    if isinstance(taken, BaseException):
        return {"error": f"{type(taken).__name__}: {taken}"}
    return {
        "median_s": taken.median_s,
        "precision": taken.precision,
        "samples": len(taken.samples_s),
        "iterations": taken.iterations,
        "discarded": taken.discarded,
    }
