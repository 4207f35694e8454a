"""A process for a profiler to watch: prepares one case, and calls its variant once
(ncu) or some times (proton).

`python -m batchline.bench.measure.worker.one_call CASE` marks the call by cudaProfilerStart
and Stop; with the path of a profile as well, Triton's proton writes it.
"""

from __future__ import annotations

import sys
import zlib

import torch

from batchline import kernels
from batchline.bench.statuses import parse_case_id

_WARM_CALLS, _PROFILED_CALLS = 10, 20


def main(case: str, proton_path: str | None = None) -> int:
    """Call the case's variant under the profiler that watches."""
    parts = parse_case_id(case)
    op = kernels.ops[parts["op"]]
    inputs = op.make_inputs(
        parts["scenario"],
        parts["batch"],
        parts["dtype"],
        "cuda",
        zlib.crc32(case.encode()),
    )
    variant = op.variants[parts["variant"]]
    for _ in range(_WARM_CALLS):
        variant(*inputs)
    torch.cuda.synchronize()
    if proton_path:
        from triton import profiler

        profiler.start(proton_path, data="tree")
        for _ in range(_PROFILED_CALLS):
            variant(*inputs)
        torch.cuda.synchronize()
        profiler.finalize()
        return 0
    torch.cuda.profiler.start()
    variant(*inputs)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
