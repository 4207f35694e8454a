"""`batchline coverage`: do the noise scale's intervals cover the truth where it is known?"""

from __future__ import annotations

import argparse

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode

DRAWS = 600
HELP = "do the noise scale's intervals cover the truth where it is known?"
SAMPLE = """
problem            B    covered    unseen    warned by data    covered of the rest    verdict
-----------------  ---  ---------  --------  ----------------  ---------------------  ----------
Gaussian           64   95.8%      1 in 21   0.0%              95.8%                  as claimed
t3 whole sample    64   91.3%      1 in 21   98.7%             25.0%                  warned
1% of samples x30  64   46.2%      1 in 21   47.0%             0.0%                   warned
"""
EXITS = {
    ExitCode.CLEAN: "every interval covers the truth as often as it says, or warns",
    ExitCode.FAULT: "an interval without a warning covers the truth less often, or more often, than it says",
    ExitCode.USAGE: "the number of draws is none",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draws",
        type=_arguments.count,
        default=DRAWS,
        help=f"batches drawn of each setting (default {DRAWS})",
    )


def run(options: argparse.Namespace) -> int:
    from batchline.bench.noise.experiments import coverage

    return coverage.run(options.draws)
