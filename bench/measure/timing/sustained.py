"""A call's time under a load that lasts, and its energy: calls in a row for a second, with
the clock that the GPU then has, and the device's own counter.

The turns of a problem are short, with pauses between them, so a GPU runs them at its
boost clock. Large products for a second meet its power cap, and take longer. Such a
time is a fact of its case and never ranks.

This imports no torch, so that planning can count on it: each variant of a problem for
which `is_sustained` holds takes `window_s` longer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from batchline.bench.measure import stand_in

SUSTAINED_S = 1.0


_LEAST_FLOPS = 1e11  # of a call: less does not load a GPU to its power cap


_WINDOW_S_STAND_IN = 0.2  # of its clock: its kernels are emulated


_LEAST_FLOPS_STAND_IN = 1.2e4  # some of the problems that it takes


_CHUNK_S = 0.02  # of calls between two events


def energy_of_a_call(
    launch: Callable, call_s: float, window_s: float, hardware, state
) -> float | None:
    """Joules a call over a window of back-to-back calls; None where the device does not
    count them.

    Args:
        call_s: about what a call takes; the device is waited for ten times in the
        window.
        hardware, state: of bench.measure.timing.clocks and bench.measure.machine.state, the device's
        clock and its counters.
    """
    counter = getattr(state, "energy_j", lambda: None)
    hardware.synchronize()
    calls, start_j, start_s = 0, counter(), hardware.now_s()
    if start_j is None:
        return None
    while hardware.now_s() - start_s < window_s:
        for _ in range(max(1, int(0.1 * window_s / call_s))):
            launch()
            calls += 1
        hardware.synchronize()
    return (counter() - start_j) / calls


def is_sustained(flops: float) -> bool:
    """Whether a problem of so many FLOP in a call is timed under a load that lasts,
    too, on a GPU.
    """
    return flops > (_LEAST_FLOPS_STAND_IN if stand_in.is_on() else _LEAST_FLOPS)


def window_s() -> float:
    """Seconds for which the calls go on."""
    return _WINDOW_S_STAND_IN if stand_in.is_on() else SUSTAINED_S


def measure(
    launch: Callable[[], object],
    call_s: float,
    hardware,
    state,
    seconds: float = SUSTAINED_S,
) -> dict:
    """Call `launch` for so many seconds in a row, and look at the GPU before it has
    come to the end.

    The next calls are queued before the last ones are waited for, so the GPU never
    waits for the host.

    Args:
        call_s: about what a call takes.
        hardware, state: of bench.measure.timing.clocks (a GPU's) and bench.measure.machine.state.

    Returns:
        seconds: how long it took. median_s: of the calls, from chunks of `_CHUNK_S`.
        sm_mhz and power_w: under load at the end; None where they are not known.
    """
    calls = max(1, int(_CHUNK_S / call_s))

    def queue_chunk():
        for _ in range(calls):
            launch()
        events.append(hardware.event())
        events[-1].record()

    hardware.synchronize()
    start_s = hardware.now_s()
    events = [hardware.event()]
    events[0].record()
    queue_chunk()
    while hardware.now_s() - start_s < seconds:
        queue_chunk()
        events[-2].synchronize()
    queue_chunk()
    under_load = state.read()  # while the last chunk is computed
    hardware.synchronize()
    chunks_s = [
        first.elapsed_time(second) * 1e-3 for first, second in zip(events, events[1:])
    ]
    return {
        "seconds": round(sum(chunks_s), 3),
        "median_s": statistics.median(chunks_s) / calls,
        "sm_mhz": under_load.get("sm_mhz"),
        "power_w": under_load.get("power_w"),
    }
