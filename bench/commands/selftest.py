"""`batchline selftest`: what the gate sees on this machine, shown on identical code and on
known extra work.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchline import own_ops
from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import remove_if_empty, require_writable
from batchline.bench.measure import stand_in
from batchline.bench.statuses import MEASURED
from batchline.bench.stopping import put_off
from batchline.bench.store import files, selftests
from batchline.bench.store.regressions import LATENCY
from batchline.bench.store.selftests import NOTHING, Finding, Selftest

if TYPE_CHECKING:
    from batchline.bench.regress.pairs import Pairs
    from batchline.bench.verdicts.paired import Evidence

HELP = "what the gate of regress sees on this machine: false alarms, known slow-downs"
SAMPLE = """
0 false alarms in 20 A/A sessions of 5 cases; planted slow-downs called REGRESSED: +1%
in 0 of 50; +2% in 36 of 50; +5% in 50 of 50.

case                                    median    A/A       A/A          +2%    +5%
                                                  alarms    change, 99%
--------------------------------------  --------  --------  -----------  -----  --------
bmm/numba_cpu_tiled/square_128/float32  220 µs    0 of 20   0.4%         9 of   10 of 10
"""
EXITS = {
    ExitCode.CLEAN: "the gate can be believed here",
    ExitCode.FAULT: "it can't be believed here; identical code alarmed, or the largest "
    "slow-down was missed",
    ExitCode.USAGE: "no such profile or case, or a folder that can't be written",
    ExitCode.NOT_MEASURED: "not measured",
    ExitCode.STOPPED: "stopped by Ctrl-C; the sessions that are done are kept",
}
SHARES = (0.01, 0.02, 0.03, 0.05, 0.1)
_PLANTED_EVERY = 2  # sessions
_LEAST_NOISE_SESSIONS = 10


@dataclass(frozen=True)
class Extent:
    """What a self-test does where nothing else is asked for: its cases (pytest's -k),
    and how many sessions.

    `shares` are planted. The cases take microseconds to a millisecond; a gate is mostly
    asked about those over 200 µs.
    """

    cases: str
    sessions: int
    shares: Sequence[float]


_EXTENTS = {
    "cpu": Extent(
        "(bmm/numba_cpu_tiled/square_128 and (B3 or B16)) or (bmm/torch_bmm/square_256 and B3) "
        "or (grad_reduce/torch_mean/odd_100003 and B3) or (wgrad_stats/torch_materialize/linear_512_T16 and B3)",
        20,
        SHARES,
    ),
    "cuda": Extent(
        "(square_256 and (torch_bmm or triton_tiled)) "
        "or (grad_reduce and digits and (torch_mean or triton_two_stage))",
        20,
        SHARES,
    ),
    stand_in.NAME: Extent("bmm and tiny_4 and triton_naive", 1, ()),
}  # what is planted takes 30 pairs, of seconds there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_ops(parser)
    _arguments.add_plan(parser)
    _arguments.add_selection(
        parser,
        "the cases whose id matches, as in pytest -k (default: a handful of "
        "Batchline's own ops)",
    )
    parser.add_argument(
        "--sessions",
        type=_arguments.count,
        help="A/A sessions; half of them see the planted slow-downs, too (default 20, "
        "on the stand-in 1)",
    )
    _arguments.add_into(parser, f"write {selftests.FILE_NAME} there too")


def run(options: argparse.Namespace) -> int:
    return selftest(
        options.profile, options.device, options.k, options.sessions, options.into
    )


def selftest(
    profile: str,
    device: str,
    selection: str,
    sessions: int | None,
    folder: Path | None = None,
) -> int:
    """Run so many A/A sessions, each as a `regress` would on these cases, every second
    one with planted slow-downs too.

    Prints the table; keeps each case's A/A change for `regress`; writes selftest.json
    into `folder`. Returns the exit code, as EXITS has it.

    Raises:
        UsageError: for an unknown profile, selection or folder.
        ValueError: for an unknown device.
    """
    from batchline.bench.cases import PROFILES, broken_lines, plan
    from batchline.bench.measure.machine import environment
    from batchline.bench.measure.worker.task import WorkerLost
    from batchline.bench.regress import pairs as gate
    from batchline.bench.selection import selected

    if own_ops.repository() and not selection:
        raise UsageError(
            "say which few cases of your ops: -k, as `batchline list` shows"
        )
    device = environment.resolve_device(device)
    extent = _EXTENTS[
        stand_in.NAME if device == "cuda" and stand_in.is_on() else device
    ]
    sessions = extent.sessions if sessions is None else sessions
    if sessions < 1:
        raise UsageError("say how many sessions: --sessions 20")
    the_plan = plan(profile, device)
    for line in broken_lines(the_plan):
        print(line, file=sys.stderr)
    cases = [case.id for case in the_plan.cases if not case.refusal]
    selection = selection or extent.cases
    chosen = selected(cases, selection, f"of profile {profile}")
    machine = environment.machine(device)
    if folder:
        require_writable(folder, "--into")
    started, started_s = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    findings: list[Finding] = []
    with gate.compile_once():
        try:
            pairs = gate.Pairs(device, PROFILES[profile], (None, None))
            working = _working(pairs, chosen)
            ended = (
                _sessions(pairs, working, sessions, findings, extent.shares)
                if working
                else "no case works"
            )
        except KeyboardInterrupt:
            ended = gate.INTERRUPTED
        except (RuntimeError, WorkerLost) as error:
            ended = str(error)
    found = Selftest(
        {
            "machine": machine,
            "profile": profile,
            "selection": selection,
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.monotonic() - started_s,
            "ended": ended,
        },
        tuple(findings),
    )
    return _publish(found, folder)


def _working(pairs: Pairs, chosen: Sequence[str]) -> list[str]:
    from batchline.bench.regress.pairs import HEAD_SIDE, Entry

    print(f"checking and compiling {len(chosen)} cases", file=sys.stderr)
    outcomes = pairs.first(HEAD_SIDE, [Entry(case, case) for case in chosen])
    for case, outcome in outcomes.items():
        if outcome.status != MEASURED:
            print(f"{case}: {outcome.status}: {outcome.reason}", file=sys.stderr)
    return [case for case in chosen if outcomes[case].status == MEASURED]


def _sessions(
    pairs: Pairs,
    cases: Sequence[str],
    sessions: int,
    findings: list[Finding],
    planted: Sequence[float] = SHARES,
) -> str:
    """Run the sessions, and add what each found; why it ended early, or ""."""
    from batchline.bench.regress.pairs import Entry, Family, measure_in_stages
    from batchline.bench.verdicts.paired import Evidence

    for session in range(sessions):
        shares = (NOTHING, *(planted if session % _PLANTED_EVERY == 0 else ()))
        families = {
            share: Family(
                Evidence(cases),
                {case: Entry(f"{case} +{share:.0%}", case, share) for case in cases},
            )
            for share in shares
        }
        print(f"session {session + 1} of {sessions}", file=sys.stderr)
        _, ended = measure_in_stages(pairs, list(families.values()))
        if ended:
            return ended
        new = [
            finding
            for share, family in families.items()
            for finding in _findings(session, share, family.evidence)
        ]
        findings += new
        for one in new:
            if one.alarm:
                print(
                    f"a false alarm: {one.case} +{one.share:.0%} is {one.verdict} {one.effect:+.1%}",
                    file=sys.stderr,
                )
    return ""


def _findings(session: int, share: float, evidence: Evidence) -> Iterator[Finding]:
    for row in evidence.judged():
        if row.quantity == LATENCY:
            yield Finding(
                session, row.id, share, row.verdict, row.effect, row.pairs, row.base
            )


def _publish(found: Selftest, folder: Path | None) -> int:
    from batchline.bench.regress import pairs as gate
    from batchline.bench.regress.pairs import INTERRUPTED
    from batchline.bench.report import of_commands as report
    from batchline.bench.report.render.terminal import render_table
    from batchline.bench.store.history import why_made_up

    if not found.findings:
        print(
            f"batchline: no session was completed ({found.about['ended']})",
            file=sys.stderr,
        )
        if folder:
            remove_if_empty(folder)
        return (
            ExitCode.STOPPED
            if found.about["ended"] == INTERRUPTED
            else ExitCode.NOT_MEASURED
        )
    noise = {
        case: value
        for case in found.cases
        if (value := report.noise_of_cases(found.of(case, NOTHING))) is not None
    }
    stored = []
    with put_off():
        if found.sessions >= _LEAST_NOISE_SESSIONS and not why_made_up(
            found.about["machine"]
        ):
            kept = gate.save_noise(
                found.about["machine"], found.about["profile"], found.sessions, noise
            )
            stored.append(f"kept for regress: {kept}")
        if folder:
            place = files.save_or_rescue(
                lambda place: selftests.save(place, found), folder
            )
            stored.append(f"stored: {place / selftests.FILE_NAME}")
    print(
        "\n".join(
            [
                f"{report.summarize_selftest(found)}\n\n"
                f"{render_table(report.selftest_table(found))}",
                *stored,
            ]
        )
    )
    if found.about["ended"]:
        return (
            ExitCode.STOPPED
            if found.about["ended"] == INTERRUPTED
            else ExitCode.NOT_MEASURED
        )
    missed = [
        one for one in found.findings if one.share == max(SHARES) and not one.seen
    ]
    alarmed = any(one.alarm for one in found.findings)
    return ExitCode.FAULT if missed or alarmed else ExitCode.CLEAN
