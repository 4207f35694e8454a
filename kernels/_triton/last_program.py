"""Programs of one launch that count themselves, so that the last of them can go on with
what all have written.

Which program comes last is chance. What it does with what the others wrote must not
depend on it: then a call gives the same bits every time. The count releases what the
program wrote and acquires what the others did, at the scope of the GPU.

The counters are zero before and after: who comes last sets them back. They are kept for
each stream, in whose order calls follow each other. In the capture of a CUDA graph they
are the call's own, and the graph sets them to zero first, in a small launch: it may be
replayed on any stream.
"""

from __future__ import annotations

import functools

import torch

from batchline.kernels._triton.warps import of_the_warp
from batchline.kernels.backends import tl, triton

STREAMS_REMEMBERED = 256


@triton.jit
def comes_last(count_ptr, count, ASSEMBLED: tl.constexpr):
    """Whether this program is the last of `count` to arrive; it then sees what all
    others wrote before, and the counter is zero again.
    """
    tl.debug_barrier()  # one thread releases what all of them wrote
    before = tl.atomic_add(count_ptr, 1, sem="acq_rel", scope="gpu")
    is_last = of_the_warp(before, ASSEMBLED) == count - 1
    if is_last:
        tl.store(count_ptr, 0)
    return is_last


def counters(device: torch.device, count: int) -> torch.Tensor:
    """`count` zeros, int32, for one launch on the current stream that leaves zeros."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    return _kept_counters(device, count, torch.cuda.current_stream(device).cuda_stream)


@functools.lru_cache(maxsize=STREAMS_REMEMBERED)
def _kept_counters(device, count, stream):
    return torch.zeros(count, dtype=torch.int32, device=device)
