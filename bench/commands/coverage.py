"""`batchline coverage`: do the noise scale's intervals cover the truth where it is known?"""

from __future__ import annotations

import argparse

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode

HELP = "do the noise scale's intervals cover the truth where it is known?"
SAMPLE = """
B    T    B_simple    method            bounded    covered where bounded    covered of all
---  ---  ----------  ----------------  ---------  -----------------------  --------------
32   1    2.2         within the batch  100.0%     95.1%                    95.1%
"""
EXITS = {
    ExitCode.CLEAN: "every interval covers the truth as often as it says",
    ExitCode.FAULT: "an interval covers the truth less often than it says",
    ExitCode.USAGE: "the number of draws is none",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draws",
        type=_arguments.count,
        default=1000,
        help="batches drawn of each setting (default 1000)",
    )


def run(options: argparse.Namespace) -> int:
    from batchline.bench.noise.experiments import coverage

    return coverage.run(options.draws)
