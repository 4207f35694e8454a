"""torch.compile for variants: one compilation for each shape, never the quiet return to eager
mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

_MOST_SHAPES = 10_000
_QUIET = {
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}


@functools.cache
def compile_fully(function: Callable) -> Callable:
    """`function` through torch.compile in mode max-autotune, without its CUDA graphs:
    those are a clock's to make.

    Call it when it is needed: torch imports its compiler then, which takes seconds.
    """
    # It stops compiling at the ninth shape, or with fullgraph raises, instead of
    # running eagerly from then on.
    torch.compiler.config.recompile_limit = _MOST_SHAPES
    torch.compiler.config.accumulated_recompile_limit = _MOST_SHAPES
    options = torch._inductor.list_mode_options("max-autotune-no-cudagraphs") | _QUIET
    return torch.compile(function, dynamic=False, fullgraph=True, options=options)
