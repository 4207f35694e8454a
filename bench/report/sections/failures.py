"""Every case without a time: what broke, what was not timed and why, and what is larger
than the profile takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from batchline.bench import units
from batchline.bench.report.document import (
    FILES,
    Bullets,
    Only,
    Part,
    Place,
    Section,
    Table,
    Text,
    table,
    unique,
)
from batchline.bench.report.findings import Findings
from batchline.bench.statuses import MEASURED, NOT_REACHED, is_broken
from batchline.bench.store.records import Record, Run


def failures(run: Run, findings: Findings) -> Section | None:
    """What counts against its variant, and files that are broken and have no case."""
    broken = (
        record for record in run.records if is_broken(record.status, record.reason)
    )
    rows = without_a_time(broken, broken_files(run))
    return Section("failures", "Failures", (rows,)) if rows else None


def skips(run: Run, findings: Findings) -> Section | None:
    """What was not timed for another reason, and what is larger than the profile
    takes.

    A CI has what was not reached among its problems.
    """
    rest = [
        record for record in run.records if not is_broken(record.status, record.reason)
    ]
    reached = [record for record in rest if record.status != NOT_REACHED]
    parts: list[Part] = [
        Only(places, (rows,))
        for places, records in ((~Place.CI, rest), (Place.CI, reached))
        if (rows := without_a_time(records))
    ]
    if run.plan.left_out:
        larger = Section("", "Larger than the profile takes", left_out(run))
        parts.append(Only(FILES, (larger,)))
    return Section("skips", "Not timed, and why", tuple(parts)) if parts else None


def problems(run: Run) -> Section | None:
    """What CI shows first: what broke and what was not reached."""
    records = [record for record in run.records if is_problem(record)]
    rows = without_a_time(records, broken_files(run))
    return Section("", "Wrong, failed or not reached", (rows,)) if rows else None


def is_problem(record: Record) -> bool:
    """Whether a case keeps a run from being clean."""
    return record.status == NOT_REACHED or is_broken(record.status, record.reason)


def without_a_time(
    records: Iterable[Record], files: Sequence[Mapping] = ()
) -> Table | None:
    """Cases without a time, one row per variant and reason; then files that are broken
    and have no case. None if there are neither.
    """
    alike: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.status != MEASURED:
            key = f"{record.op}/{record.variant}", record.status, record.reason
            alike.setdefault(key, []).append(record)
    if not alike and not files:
        return None
    rows = [
        [
            variant,
            f"{status}: {reason}" if reason else status,
            str(len(cases)),
            _which(cases),
        ]
        for (variant, status, reason), cases in alike.items()
    ]
    rows += [
        [one["file"], f"{one['status']}: {one['reason']}", "none", ""] for one in files
    ]
    return table(["variant", "what became of it", "cases", "which"], rows)


def broken_files(run: Run) -> Sequence[Mapping]:
    """What should have been an op or a variant and is none: its "file", "status" and
    "reason".
    """
    return run.broken_files


def _which(records: Sequence[Record]) -> str:
    problems = unique(f"{record.scenario}/{record.dtype}" for record in records)
    named = ", ".join(problems[:3]) + (
        f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    )
    batches = ", ".join(map(str, sorted({record.batch for record in records})))
    return f"{named}; B {'=' if len(problems) == 1 else 'among'} {batches}"


def left_out(run: Run) -> tuple[Part, ...]:
    """Which problems are larger than the profile takes, and what its limits are."""
    batches: dict[str, list[int]] = {}
    for op, scenario, dtype, batch in run.plan.left_out:
        batches.setdefault(f"`{op}/{scenario}/{dtype}`", []).append(batch)
    limits = run.plan.limits
    return (
        Text(
            f"Over {limits['flops']:.3g} FLOP or {units.size(limits['bytes'])} a call:"
        ),
        Bullets(
            tuple(
                f"{problem}: B = {', '.join(map(str, sizes))}"
                for problem, sizes in batches.items()
            )
        ),
    )
