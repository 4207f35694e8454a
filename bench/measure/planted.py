"""A known slow-down, to prove a gate with: a variant that takes its own time and a
share of it more.
"""

from __future__ import annotations

from dataclasses import replace

from batchline.kernels.op import Variant


def slower(variant: Variant, share: float, hardware) -> Variant:
    """The variant, each call of it longer by `share` of that very call's time.

    On a CPU the caller spins; on a GPU, where a call only queues its work, a kernel
    spins for at least that share of what a call took when it was first tried.
    """
    function, now_s = variant.function, hardware.now_s
    known_s: dict[tuple, float] = {}

    def on_cpu(*inputs):
        start_s = now_s()
        outputs = function(*inputs)
        until_s = now_s() * (1 + share) - start_s * share
        while now_s() < until_s:
            pass
        return outputs

    def on_cuda(*inputs):
        key = tuple(tensor.shape for tensor in inputs)
        if key not in known_s:
            function(*inputs)
            hardware.synchronize()
            known_s[key] = min(_seconds(function, inputs, hardware) for _ in range(5))
        outputs = function(*inputs)
        hardware.hold(share * known_s[key])
        return outputs

    return replace(variant, function=on_cpu if hardware.name == "cpu" else on_cuda)


def _seconds(function, inputs, hardware) -> float:
    start_s = hardware.now_s()
    function(*inputs)
    hardware.synchronize()
    return hardware.now_s() - start_s
