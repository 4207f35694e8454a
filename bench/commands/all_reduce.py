"""`batchline all-reduce`: the mean gradient over several ranks, in several ways."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from pathlib import Path

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.stopping import put_off
from batchline.bench.store import files, formats, journal, rank_times, run_json
from batchline.bench.store.files import blamed_on
from batchline.bench.store.records import Run

HELP = (
    "the mean gradient over several ranks: its time by ranks and batch, and its error"
)
SAMPLE = """
way                wire      ranks  B=8     B=32    B=128
-----------------  --------  -----  ------  ------  ------
torch_one_message  float32   1      ...
torch_one_message  float32   2      ...
own_bucketed       bfloat16  4      ...
"""
EXITS = {
    ExitCode.CLEAN: "every way is right, and timed",
    ExitCode.FAULT: "a way is wrong, and has no time; or a part of the report could not "
    "be made",
    ExitCode.USAGE: "the call is not usable, or a rank has ended",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}
_PARAMETERS = 512 * 512  # of a linear layer
_BATCHES = (8, 16, 32, 64, 128)
_MOST_BYTES = 2**31  # of the per-sample gradients of a rank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_device(parser)
    parser.add_argument(
        "--ranks",
        type=_arguments.count,
        default=4,
        metavar="N",
        help="1, 2, 4, … ranks up to N (default 4; on GPUs no more than there are)",
    )
    parser.add_argument(
        "--parameters",
        type=_arguments.count,
        default=_PARAMETERS,
        metavar="P",
        help=f"of the gradient (default {_PARAMETERS})",
    )
    parser.add_argument(
        "--batches",
        type=_batches,
        default=_BATCHES,
        metavar="B,B",
        help=f"samples of each rank (default {','.join(map(str, _BATCHES))})",
    )
    parser.add_argument(
        "--to",
        type=_place,
        metavar="FILE|RUN",
        help="also write what was measured: to a file, which `batchline advise "
        "--all-reduce` reads, or into a run's folder, whose report then has it",
    )


def _batches(text: str) -> tuple[int, ...]:
    return tuple(sorted({_arguments.count(one) for one in text.split(",")}))


def _place(text: str) -> Path:
    """A file to write: the one that is named, or in the run's folder that is. Nothing
    in a run's folder is written over.
    """
    path = Path(text)
    if path.is_dir():
        if not _is_of_run(path):
            raise argparse.ArgumentTypeError(f"there is no run in {path}: name a file")
        path /= rank_times.FILE_NAME
    there = files.stored_path(path)
    if there.exists() and _is_of_run(path.parent):
        raise argparse.ArgumentTypeError(
            f"{there} is there already: remove it first, or name another file"
        )
    return _arguments.new_file(str(path))


def _is_of_run(folder: Path) -> bool:
    return run_json.path_in(folder).exists() or (folder / journal.FILE_NAME).exists()


def run(options: argparse.Namespace) -> int:
    from batchline.bench.measure import stand_in
    from batchline.bench.measure.machine import environment
    from batchline.bench.noise.rank_scaling import Scaling
    from batchline.bench.report.render.terminal import render_parts
    from batchline.bench.report.sections.scaling import scaling

    if stand_in.is_on():
        raise UsageError(
            f"ranks take devices that are there: the {stand_in.NAME} runs kernels alone"
        )
    if options.ranks < 2:
        raise UsageError("one rank sends nothing: --ranks must be 2 or more")
    rank_bytes = 4 * options.parameters * max(options.batches)
    if rank_bytes > _MOST_BYTES:
        raise UsageError(
            f"each rank's gradients would take {rank_bytes / 2**30:.3g} GiB, and 2 are the most: "
            "give fewer --parameters or smaller --batches"
        )
    device = environment.resolve_device(options.device)
    machine = environment.machine(device)
    stored = _run_beside(options.to, machine["device_name"])
    times = _measure(options, device, machine)
    folder = _write(options.to, times) if options.to else None
    result = Scaling.of(times)
    print(render_parts(list(scaling(result))))
    complete = True
    if stored and folder == options.to.parent:
        complete = _write_report(stored, folder)
    return ExitCode.FAULT if result.wrong or not complete else ExitCode.CLEAN


def _run_beside(to: Path | None, device_name: str) -> Run | None:
    """The run into whose folder is written; None where it is another folder, or a file
    of another name.

    Raises:
        UsageError: if the run can't be read, or is of another device.
    """
    if to is None or to.name != rank_times.FILE_NAME or not _is_of_run(to.parent):
        return None
    stored = journal.recover(to.parent)
    with blamed_on(run_json.path_in(to.parent)):
        other = stored.machine["device_name"]
    if other != device_name:
        raise UsageError(
            f"the run in {to.parent} was measured on {other}, and this is {device_name}: name a run "
            "of this device, or a file"
        )
    return stored


def _measure(
    options: argparse.Namespace, device: str, machine: Mapping
) -> rank_times.RankTimes:
    from batchline.bench.measure.machine import state
    from batchline.bench.noise.experiments import mean_over_ranks

    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    before = state.read()
    measured = mean_over_ranks.measure(
        options.parameters, options.batches, options.ranks, device
    )
    about = {
        "machine": machine,
        "started": started,
        "why_busy": state.why_too_busy(before, state.read()),
    }
    return formats.from_json(rank_times.RankTimes, about | measured)


def _write(path: Path, times: rank_times.RankTimes) -> Path:
    """Keep what was measured, elsewhere where it can't be in `path`; returns the folder
    that has it.
    """
    with put_off():
        folder = files.save_or_rescue(
            lambda place: rank_times.save(place / path.name, times), path.parent
        )
    print(f"written: {folder / path.name}")
    return folder


def _write_report(stored: Run, folder: Path) -> bool:
    """Write the run's report again; whether all of it could be made."""
    from batchline.bench import publishing

    with blamed_on(run_json.path_in(folder)):
        return publishing.write_files(stored, folder, (OSError,))
