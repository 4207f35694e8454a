"""`python -m bench`: every command of the suite. The Makefile only calls this."""
from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

USAGE = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 clean, 1 a variant was wrong or failed, 2 usage, 3 nothing measured."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a CI that cancels keeps what was measured, too
    try:
        code = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (head, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("bench", "kernels"):
            raise
        return _complain(f"{error.name} is not installed: install what requirements.txt lists (`make install`)")
    except ValueError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("batchline: stopped", file=sys.stderr)
        return 130


def _run(options) -> int:
    from bench.run import DEFAULT_FOLDER, DEFAULT_HISTORY, run

    return run(options.profile, options.device, options.k, Path(options.out) if options.out else DEFAULT_FOLDER,
               options.clocks.split(",") if options.clocks else (), options.deadline,
               Path(options.history) if options.history else DEFAULT_HISTORY)


def _aa(options) -> int:
    from bench import a_a

    return a_a.run(options.profile, options.device, options.seconds, Path(options.out) if options.out else None)


def _evidence(options) -> int:
    from bench import evidence

    return evidence.collect(options.device, Path(options.out) if options.out else None, options.profile)


def _tune(options) -> int:
    from bench.tune import tune

    return tune(options.profile, options.device, options.k, options.seconds,
                Path(options.out) if options.out else None)


def _noise(options) -> int:
    from bench import study

    return study.noise(options.profile, options.device, Path(options.out) if options.out else study.RUNS)


def _claims(options) -> int:
    from bench import study

    return study.claims(options.profile, options.device, Path(options.out) if options.out else study.RUNS)


def _advise(options) -> int:
    from bench import study

    return study.advise(Path(options.run) if options.run else None, options.profile, options.device, options.workload,
                        options.batch, options.cost_cap)


def _coverage(options) -> int:
    from bench.noise import coverage

    return coverage.run(options.draws)


def _noise_cost(options) -> int:
    from bench.measure.environment import resolve_device
    from bench.noise.experiments import cost

    return cost.run(resolve_device(options.device), options.seconds)


def _regress(options) -> int:
    from bench.regress.command import DEFAULT_FOLDER, regress

    return regress(options.base, options.profile, options.device, options.k, options.budget and options.budget * 60,
                   Path(options.out) if options.out else DEFAULT_FOLDER)


def _selftest(options) -> int:
    from bench.regress import selftest

    return selftest.run(options.profile, options.device, options.k, options.sessions,
                        Path(options.out) if options.out else None)


def _compare(options) -> int:
    from bench.compare import compare

    return compare(options.a, options.b, options.force)


def _history(options) -> int:
    from bench.history import DEFAULT_FOLDER, history

    return history(options.machine, options.k, Path(options.out) if options.out else None,
                   Path(options.history) if options.history else DEFAULT_FOLDER)


def _codegen(options) -> int:
    from bench.codegen import codegen

    return codegen(options.pin, options.all)


def _list(options) -> int:
    from bench.listing import show
    from bench.measure.environment import resolve_device

    print(show(options.profile, resolve_device(options.device), options.json))
    return 0


def _report(options) -> int:
    from bench import records, report

    folder = Path(options.folder)
    run = records.load(folder)
    try:
        notes = report.write(run, folder)
    except OSError as error:
        return _complain(f"can't write the report to {folder} ({error.strerror})")
    print("\n".join([report.terminal(run), *notes, f"report: {folder / report.FILE_NAME}"]))
    return 0


def _complain(line: str) -> int:
    print(f"batchline: {line}", file=sys.stderr)
    return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench",
                                     description="What does the batch size do? Measured, on this machine.")
    commands = parser.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("run", help="check and time every variant, write a report",
                              epilog="exit: 0 clean, 1 a variant was wrong or failed, 2 usage, 3 nothing could be "
                                     "measured, 130 stopped by Ctrl-C (what was measured is kept)")
    _add_plan_options(run)
    run.add_argument("-k", default="", metavar="EXPRESSION", help="only cases whose id matches, as in pytest -k")
    run.add_argument("--clocks", metavar="A,B", help="the clocks to time by, the first ranks (default: all of "
                     "cpu: host,host_cold; cuda: device_cold,device_hot,graph,host)")
    run.add_argument("--deadline", type=float, metavar="SECONDS", help="the longest that one step of a case may take "
                     "before it counts as hung (default: smoke 60, quick 120, full 600)")
    run.add_argument("--out", metavar="FOLDER", help="where the run's own folder is made (default: reports/runs)")
    run.add_argument("--history", metavar="FOLDER", help="the history it is appended to (default: reports/history)")
    run.set_defaults(command=_run)
    aa = commands.add_parser("aa", help="time each baseline against itself: the spread on identical code",
                             epilog="exit: 0 clean, 1 a case could not be measured, 2 usage, 3 nothing was measured")
    _add_plan_options(aa)
    aa.add_argument("--seconds", type=float, default=3.0, help="the most to time each of the two in a case (default 3)")
    aa.add_argument("--out", metavar="FOLDER", help="write a-a.json there too")
    aa.set_defaults(command=_aa)
    evidence = commands.add_parser("evidence", help="all that this machine can show, in at most eight files",
                                   epilog="exit: 0 clean, 1 a part failed or was cut short (the others are there), "
                                          "2 usage")
    _add_plan_options(evidence)
    evidence.add_argument("--out", metavar="FOLDER", help="where to write (default: a new folder in reports/evidence)")
    evidence.set_defaults(command=_evidence)
    tune = commands.add_parser("tune", help="time every variant's configurations, keep the winners beside the kernels",
                               epilog="exit: 0 clean, 1 a configuration was wrong or failed (the others are kept), "
                                      "2 usage, 3 nothing to tune here")
    _add_plan_options(tune)
    tune.add_argument("-k", default="", metavar="TEXT", help="only cases whose id contains this")
    tune.add_argument("--seconds", type=float, default=0.3, help="the most to time each configuration (default 0.3)")
    tune.add_argument("--out", metavar="FOLDER", help="where to write the files (default: kernels/<op>/tuning)")
    tune.set_defaults(command=_tune)
    regress = commands.add_parser("regress", help="is the working tree slower, larger, less accurate than a revision?",
                                  epilog="exit: 0 no regression, 1 a confirmed regression, 2 usage, 3 it could not be "
                                         "measured, 130 stopped by Ctrl-C (what was measured is kept)")
    _add_plan_options(regress)
    regress.add_argument("--base", required=True, metavar="REVISION", help="what to compare with, as git names it")
    regress.add_argument("-k", default="", metavar="EXPRESSION", help="only cases whose id matches, as in pytest -k")
    regress.add_argument("--budget", type=float, metavar="MINUTES", help="begin no pair that would end later")
    regress.add_argument("--out", metavar="FOLDER", help="where its own folder is made (default: reports/runs)")
    regress.set_defaults(command=_regress)
    selftest = commands.add_parser("selftest", help="what the gate of regress sees on this machine: false alarms on "
                                   "identical code, and variants with known extra work",
                                   epilog="exit: 0 it can be believed here, 1 it can't, 2 usage, 3 not measured")
    _add_plan_options(selftest)
    selftest.add_argument("-k", default="", metavar="EXPRESSION", help="the cases (default: a handful)")
    selftest.add_argument("--sessions", type=int, default=20, help="A/A sessions; half of them see the planted "
                          "slow-downs, too (default 20)")
    selftest.add_argument("--out", metavar="FOLDER", help="write selftest.json there too")
    selftest.set_defaults(command=_selftest)
    compare = commands.add_parser("compare", help="two stored runs side by side", epilog="exit: 0 shown, 2 usage or "
                                  "not the same machine; it never gates")
    compare.add_argument("a", metavar="A", help="a run's folder, or a revision that a stored run is of")
    compare.add_argument("b", metavar="B", help="another")
    compare.add_argument("--force", action="store_true", help="across machines, too: each line then says so")
    compare.set_defaults(command=_compare)
    history = commands.add_parser("history", help="every run on a machine: what changed, when, at which revision",
                                  epilog="exit: 0 shown, 2 usage, 3 there is no history")
    history.add_argument("machine", nargs="?", help="which machine's, as its file is called (default: all there are)")
    history.add_argument("-k", default="", metavar="TEXT", help="only cases whose id contains this")
    history.add_argument("--out", metavar="FOLDER", help="where the plots and CSVs are written (default: beside it)")
    history.add_argument("--history", metavar="FOLDER", help="where it is kept (default: reports/history)")
    history.set_defaults(command=_history)
    codegen = commands.add_parser("codegen", help="compile every GPU variant (no GPU needed), compare with the pins",
                                  epilog="exit: 0 as pinned, 1 something moved, 3 it could not be compiled or compared")
    codegen.add_argument("--pin", action="store_true", help="write what was compiled as the pins of this toolchain")
    codegen.add_argument("--all", action="store_true", help="compile also what has not changed since it was pinned")
    codegen.set_defaults(command=_codegen)
    noise = commands.add_parser("noise", help="the gradient noise of the workloads over their training, and the batch "
                                "size that follows", epilog="exit: 0 clean, 1 a workload failed, 2 usage")
    _add_plan_options(noise)
    noise.add_argument("--out", metavar="FOLDER", help="where the study's own folder is made (default: reports/runs)")
    noise.set_defaults(command=_noise)
    claims = commands.add_parser("claims", help="train at many batch sizes, judge the article's four claims",
                                 epilog="exit: 0 clean, 1 a workload failed, 2 usage, 130 "
                                 "stopped by Ctrl-C (the noise is kept)")
    _add_plan_options(claims)
    claims.add_argument("--out", metavar="FOLDER", help="where the study's own folder is made (default: reports/runs)")
    claims.set_defaults(command=_claims)
    advise = commands.add_parser("advise", help="the batch size to train at, from a stored run or measured now",
                                 epilog="exit: 0 clean, 2 usage")
    _add_plan_options(advise)
    advise.add_argument("--run", metavar="FOLDER", help="a stored run or study (default: measure now)")
    advise.add_argument("--workload", metavar="NAME", help="one workload only")
    advise.add_argument("--batch", type=int, help="the batch in use, to compare with (default: the workload's)")
    advise.add_argument("--cost-cap", type=float, metavar="C", help="the examples used may be C times the least")
    advise.set_defaults(command=_advise)
    coverage = commands.add_parser("coverage", help="do the noise scale's intervals cover the truth where it is known?",
                                   epilog="exit: 0 they do, 1 one does not")
    coverage.add_argument("--draws", type=int, default=1000, help="batches drawn of each setting (default 1000)")
    coverage.set_defaults(command=_coverage)
    cost = commands.add_parser("noise-cost", help="a metered step beside a plain one, Opacus' and BackPACK's",
                               epilog="exit: 0 clean, 2 usage")
    cost.add_argument("--device", default="auto", help="auto (default: cuda where there is a GPU), cpu or cuda")
    cost.add_argument("--seconds", type=float, default=6.0, help="for each workload (default 6)")
    cost.set_defaults(command=_noise_cost)
    listing = commands.add_parser("list", help="print every case id and what it can run on")
    _add_plan_options(listing)
    listing.add_argument("--json", action="store_true", help="the same for programs")
    listing.set_defaults(command=_list)
    report = commands.add_parser("report", help="write and print a stored run's report again")
    report.add_argument("folder", help="a folder that holds a run.json")
    report.set_defaults(command=_report)
    return parser


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="quick", help="smoke, quick (default) or full")
    parser.add_argument("--device", default="auto", help="auto (default: cuda where there is a GPU), cpu or cuda")


if __name__ == "__main__":
    sys.exit(main())
