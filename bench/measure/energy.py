"""What a call costs in energy: the device's own counter, over a window of calls in a
row.
"""

from __future__ import annotations

from collections.abc import Callable


def of_a_call(
    launch: Callable, call_s: float, window_s: float, hardware, state
) -> float | None:
    """Joules a call over a window of back-to-back calls; None where the device does not
    count them.

    Args:
        call_s: about what a call takes; the device is waited for ten times in the
        window.
        hardware, state: of bench.measure.hardware and bench.measure.state, the device's
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
