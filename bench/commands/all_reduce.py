"""`batchline all-reduce`: the mean gradient over several ranks, in several ways."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError

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
    ExitCode.FAULT: "a way is wrong, and has no time",
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
        type=_arguments.new_file,
        metavar="FILE",
        help="also write what was measured, for `batchline advise --all-reduce`",
    )


def _batches(text: str) -> tuple[int, ...]:
    return tuple(sorted({_arguments.count(one) for one in text.split(",")}))


def run(options: argparse.Namespace) -> int:
    from batchline.bench.measure import stand_in
    from batchline.bench.measure.machine import environment, state
    from batchline.bench.noise.experiments import mean_over_ranks
    from batchline.bench.noise.rank_scaling import FORMAT, Scaling
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
    before = state.read()
    measured = mean_over_ranks.measure(
        options.parameters, options.batches, options.ranks, device
    )
    measured["why_busy"] = state.why_too_busy(before, state.read())
    result = Scaling.of(measured)
    print(render_parts(list(scaling(result))))
    if options.to:
        machine = environment.machine(device)
        _write(options.to, {"format": FORMAT, "machine": machine, **measured})
    return ExitCode.FAULT if result.wrong else ExitCode.CLEAN


def _write(path: Path, document: Mapping) -> None:
    from batchline.bench.store import files

    try:
        print(f"written: {files.write_json(path, document)}")
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror})") from error
