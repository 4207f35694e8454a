"""`batchline run`, and `make bench`: check and time every variant, write a report.

`torchrun --nproc-per-node=4 -m batchline run` deals the problems to four devices.
"""

from __future__ import annotations

import argparse

from batchline.bench import folders
from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode

HELP = "check and time every variant, write a report; with torchrun, on many devices"
SAMPLE = """
Which wins where
...
                              B=1    B=3    B=8    B=33   B=64   B=256  B=1024 B=4096
...
grad_reduce
  digits float32              P      P      P      P      P     |C1.35░ C3.45▓ C3.34▓
  layer_norm float32          P      P      P      P      P      P      P    ?|C2.51▓
...
Which variant: On 32 of 35 problems something beats PyTorch's fastest at some batch:
  bmm/numba_cpu_blocked on 12, wgrad_stats/numba_cpu_loop on 6

From which batch: torch_bmm overtakes numba_cpu_blocked at B = 4.67 (4.25 to 5.15) on
  bmm/attention_grad_key/float32.
...
report: reports/runs/2026-11-29-100746-amd-epyc-25-17-avx-512/README.md
"""
EXITS = {
    ExitCode.CLEAN: "clean; cases that only a busy or throttled machine left without a "
    "time count as clean",
    ExitCode.FAULT: "a variant was wrong or failed, or a part of the report could not "
    "be made",
    ExitCode.USAGE: "the call or the environment is not usable",
    ExitCode.NOT_MEASURED: "nothing could be measured",
    ExitCode.STOPPED: "stopped by Ctrl-C; what was measured is kept",
}
READS_OPS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_ops(parser)
    _arguments.add_plan(parser)
    _arguments.add_selection(parser)
    parser.add_argument(
        "--clocks",
        metavar="NAMES",
        help="the clocks to time by, with commas between; the first ranks (default: "
        "all, on cpu host,host_cold, on cuda device_cold,device_hot,graph,host)",
    )
    parser.add_argument(
        "--deadline",
        type=_arguments.positive,
        metavar="SECONDS",
        help="the longest that one step of a case may take before it counts as hung "
        "(default: smoke 60, quick 120, full 600)",
    )
    _arguments.add_out(parser)
    _arguments.add_history(parser, "the history that it is appended to")


def run(options: argparse.Namespace) -> int:
    from batchline.bench.running.benchmark import Request, benchmark

    return benchmark(
        Request(
            options.profile,
            options.device,
            options.k,
            tuple(options.clocks.split(",")) if options.clocks else (),
            options.deadline,
        ),
        options.out or folders.runs(),
        options.history or folders.history(),
    )
