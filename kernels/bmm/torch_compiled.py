"""torch.compile of torch.bmm in mode max-autotune: the compiler times its own templates against the library.

On CUDA those are Triton kernels, on a CPU one in C++; for each shape it compiles them, times them on the machine and
keeps the fastest, which takes seconds. Every call then pays for its guards, the price of being compiled at all.
"""
import functools

import torch

from kernels.bmm import bmm
from kernels.op import WIDE

_MOST_SHAPES = 10_000
_QUIET = {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}


@functools.cache
def _compiled():
    """Made at the first call, since torch.compile imports its compiler, which takes seconds too."""
    # It stops compiling at the ninth shape, or with fullgraph raises, instead of running eagerly from then on.
    torch.compiler.config.recompile_limit = _MOST_SHAPES
    torch.compiler.config.accumulated_recompile_limit = _MOST_SHAPES
    options = torch._inductor.list_mode_options("max-autotune-no-cudagraphs") | _QUIET
    return torch.compile(torch.bmm, dynamic=False, fullgraph=True, options=options)


def _why_not(a, b):
    return None if a.numel() and b.numel() else "the compiler's template for a CPU fails on an empty product"


@bmm.variant(backend="torch", dtypes=WIDE, supports=_why_not, builds_on="torch_bmm", slow_start=True)
def torch_compiled(a, b):
    return _compiled()(a, b)
