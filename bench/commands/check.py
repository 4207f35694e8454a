"""`batchline check`: what a variant's file gets wrong, in seconds."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode

HELP = "what a variant's file gets wrong, in seconds: name, imports, dtypes, probes"
SAMPLE = """
bmm/torch_my_idea           wrong    in float32: on ragged: 35 of 105 elements are …
grad_reduce/triton_my_idea  not run  needs CUDA (its name, imports and dtypes are right)
2 variants: 1 wrong, 1 not run here
"""
EXITS = {
    ExitCode.CLEAN: "every chosen variant that can run here is right",
    ExitCode.FAULT: "a variant is wrong",
    ExitCode.USAGE: "unknown device, or no variant matches",
    ExitCode.NOT_MEASURED: "no chosen variant can run here: only names, imports and "
    "declarations were checked",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}
_WIDTH = 30  # of the column of ids: a longer one moves its own line only
_DEADLINE_S = 60.0  # for one step: a compiler may take half of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which variants, and where."""
    _arguments.add_selection(
        parser,
        "only variants whose op/variant matches, as in pytest -k (default: all)",
    )
    _arguments.add_ops(parser)
    _arguments.add_device(parser)
    parser.add_argument(
        "--deadline",
        type=_arguments.positive,
        default=_DEADLINE_S,
        metavar="SECONDS",
        help=f"the longest that one step may take (default: {_DEADLINE_S:g})",
    )


def run(options: argparse.Namespace) -> int:
    """Check the chosen variants, print a line for each; returns the exit code."""
    from batchline.bench.commands._variant_check import (
        IS_WRONG,
        NOT_RUN,
        RIGHT,
        verdicts,
    )

    kinds: Counter[str] = Counter()
    for variant_id, verdict in verdicts(options.k, options.device, options.deadline):
        kinds[verdict.kind] += 1
        print(f"{variant_id:<{_WIDTH}}  {verdict.kind:<7}  {verdict.line}", flush=True)
    print(
        _closing_line(
            kinds, {RIGHT: "right", IS_WRONG: "wrong", NOT_RUN: "not run here"}
        )
    )
    if kinds[IS_WRONG]:
        return ExitCode.FAULT
    return ExitCode.CLEAN if kinds[RIGHT] else ExitCode.NOT_MEASURED


def _closing_line(kinds: Mapping[str, int], names: Mapping[str, str]) -> str:
    count = sum(kinds.values())
    parts = [f"{kinds[kind]} {name}" for kind, name in names.items() if kinds[kind]]
    return f"{count} variant{'' if count == 1 else 's'}: {', '.join(parts)}"
