"""`python -m batchline`: every command of the suite. The Makefile only calls this."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from batchline.bench import command_line, console, stopping, texts
from batchline.bench.console import complain
from batchline.bench.measure import stand_in
from batchline.bench.measure.reading.reader import started_ahead

NOT_PRINTED, USAGE = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 clean, 1 a variant was wrong or failed,
    2 usage, 3 nothing measured.

    What is printed and can't be written is 1 too, unless its reader has just seen
    enough.
    """
    console.prepare()
    options = command_line.parser().parse_args(arguments)
    device = getattr(options, "device", None)
    if stand_in.is_on() and device in (None, "cpu"):
        return _complain(
            f"{stand_in.VARIABLE} is set, and under it nothing but the stand-in for a GPU can be measured "
            f"or compiled: unset it, or use DEVICE={stand_in.NAME}"
        )
    if (device == stand_in.NAME or stand_in.is_on()) and not stand_in.is_whole():
        return _in_place_of_a_gpu(sys.argv[1:] if arguments is None else arguments)
    if stand_in.is_on() and not getattr(options, "json", False):
        _say_that_no_time_is_one()
    with stopping.as_interrupts():
        code = _ended(options)
    if why := console.why_not_printed():
        complain(f"can't print to stdout ({why})")
        return code or NOT_PRINTED
    return code


def _in_place_of_a_gpu(arguments: list[str]) -> int:
    """Run the command in a process whose GPU is the stand-in, in place of this one; it
    does not return.
    """
    os.execve(
        sys.executable,
        [sys.executable, "-m", "batchline", *arguments],
        {**os.environ, **stand_in.environment()},
    )


def _say_that_no_time_is_one() -> None:
    """Say it first on stdout and on stderr, and mark every line that follows."""
    for stream in (sys.stdout, sys.stderr):
        print(stand_in.WORDS, file=stream, flush=True)
    console.mark_lines(stand_in.MARK)


def _ended(options) -> int:
    """The command's exit code; what ends it early is a line on stderr."""
    try:
        with (
            started_ahead() if options.command in _READING else contextlib.nullcontext()
        ):
            return _COMMANDS[options.command](options)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "batchline":
            raise
        return _complain(
            f"{error.name} is not installed: install what requirements.txt lists (`make install`)"
        )
    except ValueError as error:
        return _complain(texts.clean_line(error, texts.MOST))
    except KeyboardInterrupt:
        complain("stopped")
        return stopping.EXIT_CODE


def _run(options) -> int:
    from batchline.bench.run import DEFAULT_FOLDER, DEFAULT_HISTORY, run

    return run(
        options.profile,
        options.device,
        options.k,
        Path(options.out) if options.out else DEFAULT_FOLDER,
        options.clocks.split(",") if options.clocks else (),
        options.deadline,
        Path(options.history) if options.history else DEFAULT_HISTORY,
    )


def _aa(options) -> int:
    from batchline.bench import a_a

    return a_a.run(
        options.profile,
        options.device,
        options.seconds,
        Path(options.out) if options.out else None,
    )


def _evidence(options) -> int:
    from batchline.bench.evidence.command import collect

    return collect(
        options.device,
        Path(options.out) if options.out else None,
        options.k,
        [name for name in options.part.split(",") if name],
        options.minutes,
    )


def _tune(options) -> int:
    from batchline.bench.tune import tune

    return tune(
        options.profile,
        options.device,
        options.k,
        options.seconds,
        Path(options.out) if options.out else None,
    )


def _dispatch(options) -> int:
    from batchline.bench.dispatch import dispatch

    return dispatch(
        Path(options.run) if options.run else None,
        options.profile,
        options.device,
        options.k,
        Path(options.out) if options.out else None,
    )


def _noise(options) -> int:
    from batchline.bench import study

    return study.noise(
        options.profile,
        options.device,
        Path(options.out) if options.out else study.RUNS,
    )


def _claims(options) -> int:
    from batchline.bench import study

    return study.claims(
        options.profile,
        options.device,
        Path(options.out) if options.out else study.RUNS,
    )


def _advise(options) -> int:
    from batchline.bench import study

    return study.advise(
        Path(options.run) if options.run else None,
        options.profile,
        options.device,
        options.workload,
        options.batch,
        options.cost_cap,
    )


def _coverage(options) -> int:
    from batchline.bench.noise.experiments import coverage

    return coverage.run(options.draws)


def _noise_cost(options) -> int:
    from batchline.bench.measure.machine.environment import resolve_device
    from batchline.bench.noise.experiments import cost

    return cost.run(resolve_device(options.device), options.seconds)


def _regress(options) -> int:
    from batchline.bench.regress.command import DEFAULT_FOLDER, regress

    return regress(
        options.base,
        options.profile,
        options.device,
        options.k,
        options.budget and options.budget * 60,
        Path(options.out) if options.out else DEFAULT_FOLDER,
    )


def _selftest(options) -> int:
    from batchline.bench.regress import selftest

    return selftest.run(
        options.profile,
        options.device,
        options.k,
        options.sessions,
        Path(options.out) if options.out else None,
    )


def _compare(options) -> int:
    from batchline.bench.compare import compare

    return compare(options.a, options.b, options.force)


def _history(options) -> int:
    from batchline.bench.history import DEFAULT_FOLDER, history

    return history(
        options.machine,
        options.k,
        Path(options.out) if options.out else None,
        Path(options.history) if options.history else DEFAULT_FOLDER,
    )


def _codegen(options) -> int:
    from batchline.bench.codegen import codegen

    return codegen(options.pin, options.all)


def _explain(options) -> int:
    from batchline.bench.explain import explain

    print(explain(options.case, Path(options.run) if options.run else None))
    return 0


def _profile(options) -> int:
    from batchline.bench.profile_case import profile

    return profile(options.case, options.device, options.architecture)


def _readme(options) -> int:
    from batchline.bench.readme import readme

    return readme(options.check)


def _list(options) -> int:
    from batchline.bench.cases import broken_lines, plan
    from batchline.bench.listing import show
    from batchline.bench.measure.machine.environment import resolve_device

    the_plan = plan(options.profile, resolve_device(options.device))
    print(show(the_plan, options.json))
    broken = broken_lines(the_plan)
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if broken else 0


def _report(options) -> int:
    from batchline.bench import publishing
    from batchline.bench.store import journal, run_json
    from batchline.bench.store.files import blamed_on

    folder = Path(options.folder)
    run = journal.recover(folder)
    with blamed_on(run_json.path_in(folder)):
        return 0 if publishing.write_report(run, folder, (OSError,)) else 1


def _check(options) -> int:
    from batchline.bench.commands import check

    return check.run(options)


def _complain(line: str) -> int:
    complain(line)
    return USAGE


_COMMANDS = {
    "run": _run,
    "aa": _aa,
    "evidence": _evidence,
    "tune": _tune,
    "dispatch": _dispatch,
    "noise": _noise,
    "claims": _claims,
    "advise": _advise,
    "coverage": _coverage,
    "noise-cost": _noise_cost,
    "regress": _regress,
    "selftest": _selftest,
    "compare": _compare,
    "history": _history,
    "codegen": _codegen,
    "explain": _explain,
    "profile": _profile,
    "readme": _readme,
    "list": _list,
    "report": _report,
    "check": _check,
}

_READING = ("run", "aa", "tune", "list")  # the ops, whatever they are asked for


def command() -> None:
    """What the console script `batchline` runs, and `python -m batchline`: a command,
    and its exit code.
    """
    try:
        exit_code = main()
    except KeyboardInterrupt:  # the command had ended
        exit_code = stopping.EXIT_CODE
    stopping.end_at_once()
    sys.exit(exit_code)


if __name__ == "__main__":
    command()
