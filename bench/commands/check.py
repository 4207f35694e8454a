"""`batchline check`: what a variant's file gets wrong, in seconds."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping

from batchline.bench.errors import UsageError

ALL_RIGHT, SOME_WRONG, USAGE, NOTHING_CHECKED, STOPPED = 0, 1, 2, 3, 130

HELP = "what a variant's file gets wrong, in seconds: name, imports, dtypes, probes"
SAMPLE = """
bmm/torch_my_idea           wrong    in float32: on ragged: 35 of 105 elements are …
grad_reduce/triton_my_idea  not run  needs CUDA (its name, imports and dtypes are right)
2 variants: 1 wrong, 1 not run here
"""
EXITS = {
    ALL_RIGHT: "every chosen variant that can run here is right",
    SOME_WRONG: "a variant is wrong",
    USAGE: "unknown device, or no variant matches",
    NOTHING_CHECKED: "no chosen variant can run here: only names, imports and "
    "declarations were checked",
    STOPPED: "stopped by Ctrl-C",
}
_WIDTH = 30  # of the column of ids: a longer one moves its own line only
_DEADLINE_S = 60.0  # for one step: a compiler may take half of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which variants, and where."""
    parser.add_argument(
        "-k",
        default="",
        metavar="EXPRESSION",
        help="only variants whose op/variant matches, as in pytest -k (default: all)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (default: cuda where there is a GPU), cpu, cuda, or stand-in, which "
        "interprets GPU kernels without a GPU",
    )
    parser.add_argument(
        "--deadline",
        type=float,
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

    if not options.deadline > 0:
        raise UsageError(f"--deadline {options.deadline:g} is not a number above 0")
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
        return SOME_WRONG
    return ALL_RIGHT if kinds[RIGHT] else NOTHING_CHECKED


def _closing_line(kinds: Mapping[str, int], names: Mapping[str, str]) -> str:
    count = sum(kinds.values())
    parts = [f"{kinds[kind]} {name}" for kind, name in names.items() if kinds[kind]]
    return f"{count} variant{'' if count == 1 else 's'}: {', '.join(parts)}"
