"""`batchline noise-cost`: a training step with NoiseMeter beside a plain one, Opacus' and
BackPACK's.
"""

from __future__ import annotations

import argparse

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode

HELP = "a metered step beside a plain one, Opacus' and BackPACK's"
SAMPLE = """
workload    batch    way                 median    over a plain step (95%)
----------  -------  ------------------  --------  ----------------------------
digits      32       plain step          213 µs
digits      32       NoiseMeter          527 µs    +148.6% (+147.1% to +149.7%)
digits      32       Opacus ghost norms  706 µs    +233.4% (+231.2% to +236.1%)
"""
EXITS = {
    ExitCode.CLEAN: "the steps were timed; one that was not has its reason in its row",
    ExitCode.USAGE: "unknown device",
    ExitCode.NOT_MEASURED: "no step could be timed",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_device(parser)
    parser.add_argument(
        "--seconds",
        type=_arguments.positive,
        default=6.0,
        help="for each workload (default 6)",
    )


def run(options: argparse.Namespace) -> int:
    from batchline.bench.measure.machine.environment import resolve_device
    from batchline.bench.noise.experiments import cost

    return cost.run(resolve_device(options.device), options.seconds)
