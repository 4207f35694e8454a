"""`batchline noise`: the gradient noise of the workloads over their training, and the
batch size that follows.
"""

from __future__ import annotations

import argparse

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode
from batchline.bench.folders import runs

HELP = "the gradient noise of the workloads, and the batch size that follows"
SAMPLE = """
digits: B_simple after 0 updates 84.3 (78.4 to 89.5), after 45 updates 73.9 (67 to 78.4)
report: reports/runs/2026-11-24-183759-amd-epyc-25-17-avx-512/README.md
"""
EXITS = {
    ExitCode.CLEAN: "every workload was measured",
    ExitCode.FAULT: "a workload failed, or a part of the report",
    ExitCode.USAGE: "unknown profile or device, or a folder that can't be written",
    ExitCode.STOPPED: "stopped by Ctrl-C; the workloads that are done are kept",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_plan(parser)
    _arguments.add_out(parser, "the study's")


def run(options: argparse.Namespace) -> int:
    from batchline.bench import study

    return study.make_study(
        options.profile, options.device, options.out or runs(), study.stored_sweep
    )
