"""How GPU tests share a GPU: in which order, in how many processes, and what becomes of
a process that lost it.
"""

from __future__ import annotations

import os
from collections import defaultdict

import pytest
import torch

from batchline.bench.measure import sanitizer

_EACH_BYTES = (
    8 * 2**30
)  # of the GPU's memory for a process: its context, cuBLAS' workspace, the largest test twice
_MOST = 12
_LOST = 3


def processes() -> int:
    """How many processes the tests are shared among: with a GPU what its free memory
    and the cores allow, else 2.
    """
    if not torch.cuda.is_available():
        return 2
    free_bytes, _ = torch.cuda.mem_get_info()
    return max(1, min(free_bytes // _EACH_BYTES, len(os.sched_getaffinity(0)), _MOST))


def order(items: list) -> None:
    """Sort the GPU tests by risk (bench.measure.sanitizer), within a rank in turns over
    variants and dtypes.

    Neighbours go to different processes, so these compile different kernels; the next
    turn finds them compiled. What needs no GPU keeps its place behind them.
    """
    turns, places = defaultdict(int), {}
    for item in items:
        kernel = _kernel(item)
        places[item] = turns[kernel]
        turns[kernel] += 1
    items.sort(
        key=lambda item: (
            (sanitizer.risk_rank(_kernel(item)[0]), places[item])
            if _needs_gpu(item)
            else (len(sanitizer.RISKIEST) + 1, 0)
        )
    )


def leave_if_lost(item) -> None:
    """End a process of pytest-xdist whose device answers no more, behind the test in
    which that came out.

    A kernel's fault breaks the context for good, so every later test of the process
    would fail of it. pytest-xdist says that the test has crashed it, and starts another
    process for the others.
    """
    if (
        _needs_gpu(item)
        and hasattr(item.config, "workerinput")
        and torch.cuda.is_initialized()
    ):
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(_LOST)


def _needs_gpu(item) -> bool:
    return item.get_closest_marker("gpu") is not None


def _kernel(item: pytest.Item) -> tuple[str, str]:
    """The variant and the dtype that a test is about, as far as it says so."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return getattr(params.get("variant"), "id", item.name), str(params.get("dtype"))
