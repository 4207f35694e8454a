"""`batchline explain`: one case of a stored run on one screen, and what a GPU kernel did
in emulation.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import EVIDENCE, runs
from batchline.bench.statuses import NOT_REACHED
from batchline.bench.store import run_json
from batchline.bench.store.files import SealBroken, blamed_on, stored_below
from batchline.bench.store.records import Run
from batchline.bench.texts import did_you_mean

HELP = "one case on one screen: floor, regime, ceilings, the rung below"
SAMPLE = """
bmm/numba_cpu_tiled/square_128/float32/B64: Threads over 64x256 tiles of C; B is packed
time               8.57 ms ±9.0% by host; half of 14 samples from 8.11 ms to 8.89 ms
regime             compute: 14% of what that ceiling allows, 7.25x its floor
PyTorch's fastest  torch_bmm: 2.73 ms; that one is 3.13x as fast
"""
EXITS = {
    ExitCode.CLEAN: "the case, or the kernel, is above",
    ExitCode.USAGE: "no stored run has the case, or there is no such GPU kernel",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}
_ON_A_GPU = ("triton", "numba_cuda")  # as bench.measure.emulator.subjects.BACKENDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "case",
        help="its id, as `batchline list` shows it; of op/variant, a GPU kernel's, what "
        "is pinned of it in emulation",
    )
    _arguments.add_ops(parser)
    _arguments.add_run(parser, "a stored run (default: the newest that has the case)")


def run(options: argparse.Namespace) -> int:
    print(explain(options.case, options.run))
    return ExitCode.CLEAN


def explain(case: str, run_folder: Path | None) -> str:
    """What the run has on the case; by default the newest run that has it.

    Raises:
        UsageError: for no case, or one that is in no stored run.
        ValueError: if `run_folder` is no run, or is damaged, or has no such case.
    """
    if not case:
        raise UsageError(
            "say which case: batchline explain bmm/torch_bmm/square_128/float32/B64"
        )
    if case.count("/") == 1:
        return _kernel(case)
    if run_folder:
        return _screen(run_json.load(run_folder), case, run_folder)
    reached, ids = None, {}
    for folder in (runs(), EVIDENCE):
        for path in reversed(
            stored_below(folder, run_json.FILE_NAME)
        ):  # their names begin with their dates
            with contextlib.suppress(
                ValueError
            ):  # a damaged run is passed over: an older one may have the case
                if _has(run := run_json.load(path.parent), case, but=(NOT_REACHED,)):
                    return _screen(run, case, path.parent)
                if reached is None and _has(run, case):
                    reached = (
                        run,
                        path.parent,
                    )  # a run that was stopped before it: any other one says more
                ids |= dict.fromkeys(record.id for record in run.records)
    if reached:
        return _screen(reached[0], case, reached[1])
    raise UsageError(
        f"no stored run has the case {case!r}{did_you_mean(case, ids)}: `batchline list` "
        "shows the ids, and `batchline run -k '…'` measures them"
    )


def _screen(run: Run, case: str, folder: Path) -> str:
    if not _has(run, case):
        near = did_you_mean(case, [record.id for record in run.records])
        raise UsageError(
            f"{folder} has no case {case!r}{near}: `batchline list` shows the ids of a "
            "profile, and `make bench` measures them"
        )
    from batchline.bench.report import of_commands as report

    with blamed_on(run_json.path_in(folder)):
        record = next(record for record in run.records if record.id == case)
        variant = f"{record.op}/{record.variant}"
        is_kernel = run.variants[variant]["backend"] in _ON_A_GPU
        emulated = _emulated(variant, record.dtype) if is_kernel else []
        return report.screen(run, case, str(folder), emulated)


def _kernel(variant: str) -> str:
    """What is pinned of a GPU kernel in emulation, in each of its dtypes."""
    from batchline.bench import catalogue
    from batchline.bench.report import of_commands as report

    found = {one.id: one for one in catalogue.read().variants}
    declared = found.get(variant)
    if declared is None or declared.backend not in _ON_A_GPU:
        kernels = [name for name, one in found.items() if one.backend in _ON_A_GPU]
        raise UsageError(
            f"{variant!r} is no GPU kernel{did_you_mean(variant, kernels)}: what is known "
            "of another variant is of its cases, op/variant/scenario/dtype/B8"
        )
    return report.kernel_screen(variant, declared.idea, _emulated(variant))


def _emulated(variant: str, dtype: str | None = None) -> list[tuple[str, str]]:
    """What is pinned of a GPU kernel in emulation, if it came from the sources and the
    emulator that there are now; else a line that says what executes it.
    """
    # It imports Numba's compiler for GPUs, which takes a second.
    from batchline.bench.measure.emulated import pinned
    from batchline.bench.report import of_commands as report

    try:
        known = pinned.load()
    except SealBroken as refusal:
        return [("in emulation", str(refusal))]
    jobs = [job for job in known if job[0] == variant and dtype in (None, job[1])]
    current = [job for job in jobs if pinned.is_current(job, known)]
    rows = [
        row
        for job in current
        for row in report.emulated_rows(
            job[1],
            known[job].right,
            known[job].wrong,
            known[job].launches,
            known[job].calls,
        )
    ]
    if len(current) == len(jobs) and rows:
        return rows
    why = (
        "the kernel or the emulator has changed since it was pinned"
        if jobs
        else "nothing is pinned of it"
    )
    return [
        *rows,
        ("in emulation", f"{why}: `batchline emulate {variant}` executes it"),
    ]


def _has(run: Run, case: str, but: tuple[str, ...] = ()) -> bool:
    """Whether the run has the case, with a status other than those."""
    return any(record.id == case and record.status not in but for record in run.records)
