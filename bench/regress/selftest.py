"""`batchline selftest`: what the gate sees on this machine, shown on identical code and on
known extra work.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench import publishing, selftests
from batchline.bench.cases import PROFILES, broken_lines, plan
from batchline.bench.errors import UsageError
from batchline.bench.folders import remove_if_empty, require_writable
from batchline.bench.measure import environment, stand_in
from batchline.bench.measure.isolation import WorkerLost
from batchline.bench.records import MEASURED
from batchline.bench.regress import known_noise, staged
from batchline.bench.regress.pairs import HEAD_SIDE, Entry, Pairs
from batchline.bench.regress.staged import Family
from batchline.bench.regressions import LATENCY
from batchline.bench.report import selftest as report
from batchline.bench.report.fitting import TERMINAL
from batchline.bench.selection import selected
from batchline.bench.selftests import NOTHING, Finding, Selftest
from batchline.bench.stopping import put_off
from batchline.bench.verdicts.paired import Evidence
from batchline.bench.verdicts.usable import why_made_up

CLEAN, NOT_BELIEVED, NOT_MEASURED, INTERRUPTED = 0, 1, 3, 130
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


def run(
    profile: str,
    device: str,
    selection: str,
    sessions: int | None,
    folder: Path | None = None,
) -> int:
    """Run so many A/A sessions, each as a `regress` would on these cases, every second
    one with planted slow-downs too.

    Prints the table; keeps each case's A/A change for `regress`; writes selftest.json
    into `folder`. The exit code: 0, 1 where identical code alarmed or the largest
    slow-down was missed once, 3 where nothing could be measured.

    Raises:
        UsageError: for an unknown profile, selection or folder.
        ValueError: for an unknown device.
    """
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
        require_writable(folder)
    started, started_s = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    findings: list[Finding] = []
    with staged.compiled_once():
        try:
            pairs = Pairs(device, PROFILES[profile], (None, None))
            working = _working(pairs, chosen)
            ended = (
                _sessions(pairs, working, sessions, findings, extent.shares)
                if working
                else "no case works"
            )
        except KeyboardInterrupt:
            ended = staged.INTERRUPTED
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
        _, ended = staged.measure(pairs, list(families.values()))
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
    if not found.findings:
        print(
            f"batchline: no session was completed ({found.about['ended']})",
            file=sys.stderr,
        )
        if folder:
            remove_if_empty(folder)
        return (
            INTERRUPTED if found.about["ended"] == staged.INTERRUPTED else NOT_MEASURED
        )
    noise = {
        case: value
        for case in found.cases
        if (value := report.noise(found.of(case, NOTHING))) is not None
    }
    stored = []
    with put_off():
        if found.sessions >= _LEAST_NOISE_SESSIONS and not why_made_up(
            found.about["machine"]
        ):
            kept = known_noise.save(
                found.about["machine"], found.about["profile"], found.sessions, noise
            )
            stored.append(f"kept for regress: {kept}")
        if folder:
            place = publishing.store(lambda place: selftests.save(place, found), folder)
            stored.append(f"stored: {place / selftests.FILE_NAME}")
    print(
        "\n".join(
            [f"{report.table(found, TERMINAL)}\n\n{report.answer(found)}", *stored]
        )
    )
    if found.about["ended"]:
        return (
            INTERRUPTED if found.about["ended"] == staged.INTERRUPTED else NOT_MEASURED
        )
    missed = [
        one for one in found.findings if one.share == max(SHARES) and not one.seen
    ]
    return NOT_BELIEVED if missed or any(one.alarm for one in found.findings) else CLEAN
