"""`batchline advise`: the batch size to train at, from a stored run or measured now, of
the two workloads here or of a training of your own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import runs
from batchline.bench.store.files import blamed_on
from batchline.bench.texts import did_you_mean

HELP = (
    "the batch size to train at: of a stored run, measured now, or of your own training"
)
SAMPLE = """
digits: an MLP (64 → 128 → 10, ReLU) on scikit-learn's handwritten digits

Train at batch 249 (95% interval 211 to 274): any batch from 157 to 375 is within 5% of
its time. The gradient noise decides, with a noise scale of 134. A larger batch than the
current 32, which takes 2.35x its time and 0.43x its examples.
"""
EXITS = {
    ExitCode.CLEAN: "the advice is above",
    ExitCode.USAGE: "no such workload, no noise in the run, a cap below 1, or a --train that "
    "can't be trained",
    ExitCode.NOT_MEASURED: "the machine was too busy to time a step",
    ExitCode.STOPPED: "stopped by Ctrl-C; what was measured is above",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_plan(parser)
    _arguments.add_run(parser, "a stored run or study (default: measure now)")
    parser.add_argument("--workload", metavar="NAME", help="one workload only")
    parser.add_argument(
        "--batch",
        type=_arguments.count,
        help="the batch in use, to compare with (default: the workload's)",
    )
    parser.add_argument(
        "--cost-cap",
        type=_arguments.positive,
        metavar="C",
        help="the examples used may be C times the least",
    )
    parser.add_argument(
        "--train",
        metavar="FILE:FUNCTION",
        help="your own training: the function returns (model, loss, data) or (model, "
        "loss, data, optimizer), or a dict of these, in which samples_apart=True is "
        "NoiseMeter's argument. The loss is a loss module, called with (model(inputs), "
        "targets), or a function loss(model, batch), and a mean over the batch. The data "
        "are a DataLoader, a dataset, tensors, or a function batch(n, seed)",
    )
    parser.add_argument(
        "--validate",
        nargs="?",
        const=True,
        type=_arguments.positive,
        metavar="LOSS",
        help="with --train: train to this loss (default: what the look at the noise came "
        "to) at several batches, and put that beside the prediction. Takes minutes",
    )
    parser.add_argument(
        "--ranks",
        type=_arguments.count,
        metavar="N",
        help="with --train: how many ranks up to N are worth having",
    )
    parser.add_argument(
        "--all-reduce",
        type=Path,
        metavar="FILE",
        help="with --ranks: the all-reduce as `batchline all-reduce --to FILE` has timed "
        "it; a run's folder that has it will do (default: timed now)",
    )
    _arguments.add_out(parser, "with --train, its")


def run(options: argparse.Namespace) -> int:
    from batchline.bench import study
    from batchline.bench.store.history import why_made_up

    if options.cost_cap is not None and options.cost_cap < 1:
        raise UsageError(
            "no batch uses fewer examples than the least: the cap must be 1 or more, "
            f"and is {options.cost_cap:g}"
        )
    _require_fitting(options)
    if options.train:
        return _advise_own(options)
    asked = options.workload, options.batch, options.cost_cap
    if options.run:
        path, noise, machine = study.stored_noise(options.run)
        with blamed_on(path):
            if made_up := why_made_up(machine):
                print(made_up)
            return _print_advice(noise, *asked)
    _require_workload(options.workload)
    device = study.resolve_device(options.profile, options.device)
    measured = study.measure_survey(options.profile, device)
    code = _print_advice(measured.noise, *asked)
    return ExitCode.STOPPED if measured.partial else code


def _require_fitting(options: argparse.Namespace) -> None:
    """Raise UsageError for options that don't go together."""
    if options.train and (options.run or options.workload):
        other = "--run" if options.run else "--workload"
        raise UsageError(f"--train measures a training of your own: leave {other} out")
    for name in ("validate", "ranks"):
        if getattr(options, name) is not None and not options.train:
            raise UsageError(
                f"--{name} is of a training of your own: give --train FILE:FUNCTION too"
            )
    if options.all_reduce and not options.ranks:
        raise UsageError("--all-reduce is of ranks: give --ranks N too")


def _advise_own(options: argparse.Namespace) -> int:
    """Measure the user's training, store it, and say what follows."""
    from batchline.bench import own_study, study
    from batchline.bench.measure import stand_in

    if stand_in.is_on():
        raise UsageError(
            f"--train takes a device that is there: the {stand_in.NAME} runs kernels alone"
        )
    device = study.resolve_device(options.profile, options.device)
    if options.profile not in own_study.EFFORTS:
        raise UsageError(
            f"--train has the profiles {', '.join(own_study.EFFORTS)}, not {options.profile}"
        )
    effort = own_study.EFFORTS[options.profile]
    reduces = _stored_all_reduce(options.all_reduce, device)
    with own_study.asked(options.train, device) as ask:
        measured = own_study.measure(ask, effort, options.batch, _say)
        folder = own_study.store(
            options.train, measured, options.profile, device, options.out or runs()
        )
        for line in own_study.describe_not_run(measured):
            print(line, file=sys.stderr)
        noise = {"workloads": {own_study.name_of(options.train): measured}}
        code = _print_advice(noise, None, options.batch, options.cost_cap)
        if code != ExitCode.CLEAN:
            return code
        if options.ranks:
            _print_ranks(options, measured, device, reduces)
        stopped = own_study.was_stopped(measured)
        if options.validate is not None and not stopped:
            target = None if options.validate is True else options.validate
            sweep = own_study.train_to_target(ask, measured, target, effort, _say)
            own_study.store_sweep(folder, sweep)
            _print_comparison(measured, sweep)
            stopped = sweep["partial"]
    return ExitCode.STOPPED if stopped else code


def _stored_all_reduce(path: Path | None, device: str):
    """The all-reduce of a file; None without one."""
    from batchline.bench import own_study
    from batchline.bench.measure.machine import environment

    if path is None:
        return None
    name = environment.machine(device)["device_name"]
    return own_study.stored_all_reduce(path, name)


def _print_ranks(
    options: argparse.Namespace, measured: Mapping, device: str, reduces
) -> None:
    """How many ranks are worth having, or in a line why that is not known: the advice
    on one stands.
    """
    from batchline.bench import own_study
    from batchline.bench.report.document import Text
    from batchline.bench.report.render.terminal import render_parts
    from batchline.bench.report.sections.advisor import ranks

    if reduces is None:
        _say(f"all-reduces of up to {min(options.ranks, 4)} ranks")
    try:
        counts = own_study.measure_ranks(
            measured, device, options.ranks, options.cost_cap, reduces
        )
        parts = list(ranks(counts))
    except ValueError as error:
        parts = [Text(f"No advice on ranks: {error}.")]
    print(f"{render_parts(parts)}\n")


def _print_comparison(measured: Mapping, sweep: Mapping) -> None:
    """The time that training took to the target, beside what was predicted."""
    from batchline.bench.noise import time_to_target
    from batchline.bench.report.document import Text
    from batchline.bench.report.render.terminal import render_parts
    from batchline.bench.report.sections.advisor import comparison

    estimates = {
        f"after {point['updates']} updates": point["estimate"]
        for point in measured["points"]
    }
    result = time_to_target.compare(sweep, measured["steps"], estimates)
    parts = [
        *comparison(result),
        Text(result.of_updates),
        Text("The learning rates are times the optimizer's own."),
    ]
    if sweep["why_busy"]:
        parts.append(
            Text(
                f"The machine was busy while it trained ({sweep['why_busy']}): compare the updates, not the times."
            )
        )
    print(f"{render_parts(parts)}\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _require_workload(name: str | None) -> None:
    """Raise UsageError before minutes of measuring, if there is no such workload."""
    from batchline.bench.noise.workloads import workloads

    if name not in (None, *workloads):
        raise UsageError(
            f"no workload is called {name!r}{did_you_mean(name, workloads)}: use "
            f"{' or '.join(workloads)}"
        )


def _print_advice(
    noise: Mapping, workload: str | None, batch: int | None, cost_cap: float | None
) -> int:
    from batchline.bench.report.render.terminal import render_parts
    from batchline.bench.report.sections.advisor import advise_on

    names = [
        name
        for name, one in noise["workloads"].items()
        if "failed" not in one and workload in (None, name)
    ]
    if not names:
        raise UsageError(
            f"no noise of {workload or 'any workload'} there: it has {', '.join(noise['workloads'])}"
        )
    for name in names:
        chosen = noise["workloads"][name]
        if chosen.get("why_not_timed"):
            print(
                f"batchline: no advice for {name}: its steps could not be timed: {chosen['why_not_timed']}",
                file=sys.stderr,
            )
            continue
        print(
            f"{name}: {chosen['title']}\n\n"
            f"{render_parts(advise_on(chosen, batch, cost_cap))}\n"
        )
    advised = any(not noise["workloads"][name].get("why_not_timed") for name in names)
    return ExitCode.CLEAN if advised else ExitCode.NOT_MEASURED
