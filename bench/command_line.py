"""The words of `python -m batchline`: every command, its options, what its exit codes
mean.
"""

from __future__ import annotations

import argparse
import contextlib
import math

from batchline.kernels.architectures import KNOWN, WITHOUT_GPU

_DEVICE_HELP = (
    "auto (default: cuda where there is a GPU), cpu, cuda, or stand-in: a made-up GPU, to go the whole way "
    "without one"
)


def _positive(text: str) -> float:
    """A finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _count(text: str) -> int:
    """A whole number of 1 or more."""
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def parser() -> argparse.ArgumentParser:
    """Of all commands; what is parsed has the command's name as `command`."""
    found = argparse.ArgumentParser(
        prog="python -m batchline",
        description="What does the batch size do? Measured, on this machine.",
    )
    commands = found.add_subparsers(required=True, dest="command", metavar="command")
    run = commands.add_parser(
        "run",
        help="check and time every variant, write a report",
        epilog="exit: 0 clean (cases that only a busy or throttled machine left without a time "
        "count as clean), 1 a variant was wrong or failed, or a part of the report could "
        "not be made, 2 usage, 3 nothing could be measured, 130 stopped by Ctrl-C "
        "(what was measured is kept)",
    )
    _add_plan_options(run)
    run.add_argument(
        "-k",
        default="",
        metavar="EXPRESSION",
        help="only cases whose id matches, as in pytest -k",
    )
    run.add_argument(
        "--clocks",
        metavar="A,B",
        help="the clocks to time by, the first ranks (default: all of "
        "cpu: host,host_cold; cuda: device_cold,device_hot,graph,host)",
    )
    run.add_argument(
        "--deadline",
        type=_positive,
        metavar="SECONDS",
        help="the longest that one step of a case may "
        "take before it counts as hung (default: smoke 60, quick 120, full 600)",
    )
    run.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the run's own folder is made (default: reports/runs)",
    )
    run.add_argument(
        "--history",
        metavar="FOLDER",
        help="the history it is appended to (default: reports/history)",
    )
    aa = commands.add_parser(
        "aa",
        help="time each baseline against itself: the spread on identical code",
        epilog="exit: 0 clean, 1 a case could not be measured, 2 usage, 3 nothing was "
        "measured, 130 stopped by Ctrl-C (the cases that are done are kept)",
    )
    _add_plan_options(aa)
    aa.add_argument(
        "--seconds",
        type=_positive,
        default=3.0,
        help="the most to time each of the two in a case (default 3)",
    )
    aa.add_argument("--out", metavar="FOLDER", help="write a-a.json there too")
    evidence = commands.add_parser(
        "evidence",
        help="what half an hour of a GPU is best spent on, in parts",
        epilog="exit: 0 clean (also where --minutes left parts out), 1 a part failed or was "
        "cut short (the others are there), 2 usage, 130 stopped by Ctrl-C; what is "
        "done is kept, and another call with the same --out goes on",
    )
    evidence.add_argument("--device", default="auto", help=_DEVICE_HELP)
    evidence.add_argument(
        "-k",
        default="",
        metavar="EXPRESSION",
        help="only cases whose id matches, as in pytest -k, "
        "in the parts cases and dispatch",
    )
    evidence.add_argument(
        "--part",
        default="",
        metavar="A,B",
        help="only these parts, and those again that are there: "
        "clocks, tests, sanitizer, cases, noise, dispatch (default: all that are missing in --out)",
    )
    evidence.add_argument(
        "--minutes",
        type=_positive,
        metavar="M",
        help="begin no part that might end later (each " "ends within 9)",
    )
    evidence.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to write, and to go on (default: a new folder in "
        "reports/runs, which moves to reports/evidence when it is whole)",
    )
    tune = commands.add_parser(
        "tune",
        help="time every variant's configurations, keep the winners beside the kernels",
        epilog="exit: 0 clean, 1 a configuration was wrong or failed (the others are kept), "
        "2 usage, 3 nothing to tune here",
    )
    _add_plan_options(tune)
    tune.add_argument(
        "-k",
        default="",
        metavar="EXPRESSION",
        help="only cases whose id matches, as in pytest -k",
    )
    tune.add_argument(
        "--seconds",
        type=_positive,
        default=0.3,
        help="the most to time each configuration (default 0.3)",
    )
    tune.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to write the files (default: kernels/<op>/tuning, for "
        "the stand-in a new folder in reports/runs)",
    )
    dispatch = commands.add_parser(
        "dispatch",
        help="a run's winners as the tables that an op's call looks up, and "
        "what the call costs",
        epilog="exit: 0 clean, 1 a call is slower than the baseline "
        "by more than the look-up, or fails, 2 usage, 3 nothing could be measured, or a "
        "table was left as it is because the new one could not be verified",
    )
    _add_plan_options(dispatch)
    dispatch.add_argument(
        "-k",
        default="",
        metavar="EXPRESSION",
        help="only problems of which a case matches, as in "
        "pytest -k; the tables of other ops are not touched",
    )
    dispatch.add_argument(
        "--run",
        metavar="FOLDER",
        help="call the problems of its profile by its tables, take out "
        "what is slower, and write them (default: call by the tables that there are)",
    )
    dispatch.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to write them (default: kernels/<op>/dispatch)",
    )
    regress = commands.add_parser(
        "regress",
        help="is the working tree slower, larger, less accurate than a revision?",
        epilog="exit: 0 no regression confirmed, 1 a confirmed regression, 2 usage, 3 not "
        "measured or not decided (a case is INVALID, or UNCONFIRMED: above its floor "
        "when the pairs or the budget ended; no case that was compared has a verdict; "
        "or the session is void), 130 stopped by Ctrl-C (what was measured is kept)",
    )
    _add_plan_options(regress)
    regress.add_argument(
        "--base",
        required=True,
        metavar="REVISION",
        help="what to compare with, as git names it",
    )
    regress.add_argument(
        "-k",
        default="",
        metavar="EXPRESSION",
        help="only cases whose id matches, as in pytest -k",
    )
    regress.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="begin no pair that would end later",
    )
    regress.add_argument(
        "--out",
        metavar="FOLDER",
        help="where its own folder is made (default: reports/runs)",
    )
    selftest = commands.add_parser(
        "selftest",
        help="what the gate of regress sees on this machine: false alarms on "
        "identical code, and variants with known extra work",
        epilog="exit: 0 it can be believed here, 1 it can't, 2 usage, 3 not measured, "
        "130 stopped by Ctrl-C (the sessions that are done are kept)",
    )
    _add_plan_options(selftest)
    selftest.add_argument(
        "-k", default="", metavar="EXPRESSION", help="the cases (default: a handful)"
    )
    selftest.add_argument(
        "--sessions",
        type=_count,
        help="A/A sessions; half of them see the planted slow-downs, too "
        "(default 20, on the stand-in 1)",
    )
    selftest.add_argument(
        "--out", metavar="FOLDER", help="write selftest.json there too"
    )
    compare = commands.add_parser(
        "compare",
        help="two stored runs side by side",
        epilog="exit: 0 shown, 2 usage or "
        "not the same machine, 3 no case is timed in both; it never gates",
    )
    compare.add_argument(
        "a", metavar="A", help="a run's folder, or a revision that a stored run is of"
    )
    compare.add_argument("b", metavar="B", help="another")
    compare.add_argument(
        "--force",
        action="store_true",
        help="across machines, too: each line then says so",
    )
    history = commands.add_parser(
        "history",
        help="every run on a machine: what changed, when, at which revision",
        epilog="exit: 0 shown, 2 usage, 3 there is no run to show",
    )
    history.add_argument(
        "machine",
        nargs="?",
        help="which machine's, as its file is called (default: all there are)",
    )
    history.add_argument(
        "-k",
        default="",
        metavar="EXPRESSION",
        help="only cases whose id matches, as in pytest -k",
    )
    history.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the plots and CSVs are written (default: beside it)",
    )
    history.add_argument(
        "--history",
        metavar="FOLDER",
        help="where it is kept (default: reports/history)",
    )
    codegen = commands.add_parser(
        "codegen",
        help="compile every GPU variant (no GPU needed), compare with the pins",
        epilog="exit: 0 as pinned, 1 something moved, 3 it could not be compiled or compared",
    )
    codegen.add_argument(
        "--pin",
        action="store_true",
        help="write what was compiled as the pins of this toolchain",
    )
    codegen.add_argument(
        "--all",
        action="store_true",
        help="compile also what has not changed since it was pinned",
    )
    explain = commands.add_parser(
        "explain",
        help="one case on one screen: floor, regime, ceilings, the rung below",
        epilog="exit: 0 shown, 2 usage or no such case",
    )
    explain.add_argument("case", help="its id, as `batchline list` shows it")
    explain.add_argument(
        "--run",
        metavar="FOLDER",
        help="a stored run (default: the newest that has the case)",
    )
    profile = commands.add_parser(
        "profile",
        help="one case under ncu or proton; without a GPU its hot loop",
        epilog="exit: 0 shown, 1 the profiler failed, 2 usage, 3 nothing to show here",
    )
    profile.add_argument("case", help="its id, as `batchline list` shows it")
    profile.add_argument("--device", default="auto", help=_DEVICE_HELP)
    profile.add_argument(
        "--architecture",
        type=_count,
        default=WITHOUT_GPU,
        metavar="NUMBER",
        help=f"without a GPU: what it is compiled for, {', '.join(map(str, KNOWN))} (default: "
        f"{WITHOUT_GPU})",
    )
    readme = commands.add_parser(
        "readme",
        help="write the documents' figures anew, from the stored runs they name",
        epilog="exit: 0 clean, 1 (with --check) a document is not up to date, 2 a figure "
        "can't be made",
    )
    readme.add_argument(
        "--check", action="store_true", help="only say whether they are up to date"
    )
    noise = commands.add_parser(
        "noise",
        help="the gradient noise of the workloads over their training, and the batch "
        "size that follows",
        epilog="exit: 0 clean, 1 a workload failed, or a part of the "
        "report, 2 usage, 130 stopped by Ctrl-C (the workloads that are done are kept)",
    )
    _add_plan_options(noise)
    noise.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the study's own folder is made (default: reports/runs)",
    )
    claims = commands.add_parser(
        "claims",
        help="train at many batch sizes, judge the article's four claims",
        epilog="exit: 0 clean, 1 a workload failed, 2 usage, 130 "
        "stopped by Ctrl-C (the noise is kept)",
    )
    _add_plan_options(claims)
    claims.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the study's own folder is made (default: reports/runs)",
    )
    advise = commands.add_parser(
        "advise",
        help="the batch size to train at, from a stored run or measured now",
        epilog="exit: 0 clean, 2 usage, 3 the machine was too busy to time a step",
    )
    _add_plan_options(advise)
    advise.add_argument(
        "--run", metavar="FOLDER", help="a stored run or study (default: measure now)"
    )
    advise.add_argument("--workload", metavar="NAME", help="one workload only")
    advise.add_argument(
        "--batch",
        type=_count,
        help="the batch in use, to compare with (default: the workload's)",
    )
    advise.add_argument(
        "--cost-cap",
        type=_positive,
        metavar="C",
        help="the examples used may be C times the least",
    )
    coverage = commands.add_parser(
        "coverage",
        help="do the noise scale's intervals cover the truth where it is known?",
        epilog="exit: 0 they do, 1 one does not",
    )
    coverage.add_argument(
        "--draws",
        type=_count,
        default=1000,
        help="batches drawn of each setting (default 1000)",
    )
    cost = commands.add_parser(
        "noise-cost",
        help="a metered step beside a plain one, Opacus' and BackPACK's",
        epilog="exit: 0 clean, 2 usage, 3 the machine was too busy to time a step",
    )
    cost.add_argument("--device", default="auto", help=_DEVICE_HELP)
    cost.add_argument(
        "--seconds", type=_positive, default=6.0, help="for each workload (default 6)"
    )
    listing = commands.add_parser(
        "list",
        help="print every case id and what it can run on",
        epilog="exit: 0 clean, 1 a file is broken (the others are listed), 2 usage",
    )
    _add_plan_options(listing)
    listing.add_argument("--json", action="store_true", help="the same for programs")
    report = commands.add_parser(
        "report",
        help="write and print a stored run's report again",
        epilog="exit: 0 clean, 1 a part of it could not be made, 2 there is no run",
    )
    report.add_argument(
        "folder",
        help="a run's folder; of a run that was killed, what its journal has is reported",
    )
    return found


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        default="quick",
        help="smoke, quick (default), full, or evidence: a fixed list of about 400 cases over all ops",
    )
    parser.add_argument("--device", default="auto", help=_DEVICE_HELP)
