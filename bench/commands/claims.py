"""`batchline claims`: train at many batch sizes, and judge the article's four claims."""

from __future__ import annotations

import argparse
import functools

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode
from batchline.bench.folders import runs
from batchline.bench.measure import stand_in

HELP = "train at many batch sizes (minutes), judge the article's four claims"
SAMPLE = """
The four claims
1. larger batches finish an epoch sooner; smaller ones need more iterations: HOLDS ONLY
  WHERE an epoch is sooner done at a larger batch
"""
EXITS = {
    ExitCode.CLEAN: "every claim has its verdict",
    ExitCode.FAULT: "a workload failed, or a part of the report",
    ExitCode.USAGE: "unknown profile or device, or a folder that can't be written",
    ExitCode.STOPPED: "stopped by Ctrl-C; the noise is kept",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_plan(parser)
    _arguments.add_out(parser, "the study's")


def run(options: argparse.Namespace) -> int:
    from batchline.bench import study
    from batchline.bench.noise.experiments import sweep

    grid = sweep.SMALL if stand_in.is_on() else sweep.Grid()
    return study.make_study(
        options.profile,
        options.device,
        options.out or runs(),
        functools.partial(sweep.run, grid=grid),
    )
