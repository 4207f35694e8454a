"""`batchline report`: write and print a stored run's report again."""

from __future__ import annotations

import argparse
from pathlib import Path

from batchline.bench.errors import ExitCode
from batchline.bench.store import run_json
from batchline.bench.store.files import blamed_on

HELP = "write and print a stored run's report again"
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
...
report: reports/runs/2026-11-29-100746-amd-epyc-25-17-avx-512/README.md
"""
EXITS = {
    ExitCode.CLEAN: "the report is written",
    ExitCode.FAULT: "a part of it could not be made",
    ExitCode.USAGE: "there is no run",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="a run's folder; of a run that was killed, what its journal has is "
        "reported",
    )


def run(options: argparse.Namespace) -> int:
    from batchline.bench import publishing
    from batchline.bench.store import journal

    stored = journal.recover(options.run)
    with blamed_on(run_json.path_in(options.run)):
        complete = publishing.write_report(stored, options.run, (OSError,))
    return ExitCode.CLEAN if complete else ExitCode.FAULT
