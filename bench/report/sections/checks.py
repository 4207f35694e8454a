"""Checks that no time shows, and every case without a time.

The checks: whether a sample's result depends on the batch that it is in, and how far
each way of computing the statistics is from fp64. The cases: what broke, what was not
timed and why, and what is larger than the profile takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.report.document import (
    FILES,
    Bullets,
    Cell,
    Lines,
    Mark,
    Marked,
    Only,
    Part,
    Place,
    Section,
    Table,
    Text,
    join,
    table,
    unique,
)
from batchline.bench.report.findings import Findings
from batchline.bench.statuses import MEASURED, NOT_REACHED, is_broken
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts.choosing import Invariance, Price

_MOST_NAMED = 3
_INVARIANCE_NOTE = (
    "A sample's result is compared bit by bit between batches: the first samples of the largest batch that takes "
    "milliseconds are a smaller batch of their own. Where it differs, what a sample gets depends on who else is in "
    'its batch. "Run to run": all outputs are the same when called again and on copies of the inputs. An op\'s '
    "own call changes its variant with the batch, so it may vary although all that it chooses from is invariant."
)

_LIMIT = 1e-3  # an error over this is marked
_SYMBOLS = {"mean": "ḡ", "noise_scale": "scale"}  # of errors; others are their names
_SCALE = "noise_scale"
_FACTS = {
    "op",
    "variant",
    "dtype",
    "whose",
    "condition",
    "failed",
    "impossible",
    "not_run",
}  # of every row; what else it has are the op's errors
_WHOSE = {"ours": "", "peer": " (a peer)", "control": " (not of this suite)"}
_AUDIT_NOTE = (
    "Each way of computing the statistics against fp64, on inputs that are hard on arithmetic "
    "(reports/methodology/measuring.md has them). A cell is the worst of the errors of ḡ (‖Δ‖/‖ḡ‖), n (|Δn_b|/n_b) "
    "and d (|Δd_b|/(‖g_b‖·‖ḡ‖)), then that "
    f"of the simple noise scale which {{ḡ, n}} give. Errors over {_LIMIT:.1%} are marked; a squared norm below zero "
    "fails its cell, and nothing is clamped. What is not of this suite is there because people write it."
)


def invariance(run: Run, findings: Findings) -> Section | None:
    """The table, then the price of choosing only among invariant variants; None where
    the run did not look.
    """
    if not findings.invariance:
        return None
    columns = ["variant", "a sample's bits in every batch", "run to run", "differs"]
    return Section(
        "invariance",
        "Batch invariance",
        (
            Text(_INVARIANCE_NOTE),
            table(columns, map(_bits, findings.invariance)),
            *(Text(_price(price)) for price in findings.invariance_prices),
        ),
    )


def _bits(one: Invariance) -> Sequence[str]:
    same = one.scenarios - len(one.varies)
    samples = (
        "no row per sample"
        if not one.scenarios
        else (
            "the same"
            if not one.varies
            else f"the same on {same} of {one.scenarios} scenarios"
        )
    )
    return (
        f"{one.op}/{one.variant} · {one.dtype}",
        samples,
        {True: "the same", False: "differs", None: ""}[one.repeats],
        "; ".join([*_varies(one), *one.failed]),
    )


def _varies(one: Invariance) -> list[str]:
    named = [
        f"{scenario} at B={', '.join(map(str, batches))}"
        for scenario, batches in one.varies.items()
    ]
    more = len(named) - _MOST_NAMED
    return [*named[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]


def _price(price: Price) -> str:
    where = f"{price.op} in {price.dtype}"
    without = (
        f" On {price.without} problems no variant is invariant."
        if price.without
        else ""
    )
    if not price.problems:
        return f"{where}: no variant is invariant on any of {price.without} problems."
    if price.most <= 1:
        return f"{where}: the fastest variant is invariant on all of {price.problems} problems: no price.{without}"
    return (
        f"{where}: choosing only among invariant variants costs {units.ratio(price.mean)} (geometric mean over "
        f"{price.problems} problems), {units.ratio(price.most)} at most ({price.where}).{without}"
    )


def numerics(run: Run, findings: Findings) -> Section | None:
    """What the figures are, then for each op a table and what follows from it; None
    where the run audited nothing.
    """
    if not findings.audit:
        return None
    parts = [Only(FILES, (Text(_AUDIT_NOTE),))]
    for op, rows in findings.audit.items():
        sentences = tuple(_conclusions(rows))
        parts += [
            Only(FILES, (Text(f"**{op}**"), _errors_table(rows), Bullets(sentences))),
        ]
    lines = tuple(
        f"{op}: {sentence}"
        for op, rows in findings.audit.items()
        for sentence in _conclusions(rows)
    )
    parts.append(Only(Place.TERMINAL, (Lines(lines),)))
    return Section("numerics", "Numerics of the statistics", tuple(parts))


def impossible(run: Run) -> list[Mapping]:
    """The rows of the numerics audit in which a variant of this suite gave what can't
    be.
    """
    return [row for row in run.audit if row["whose"] == "ours" and row["impossible"]]


def impossible_statistics(run: Run) -> Section | None:
    """Those rows, for a CI; None where there are none."""
    rows = [
        [
            f"{row['op']}/{row['variant']}",
            row["dtype"],
            inputs_of(row),
            row["failed"],
        ]
        for row in impossible(run)
    ]
    if not rows:
        return None
    columns = ["variant", "dtype", "inputs", "what failed"]
    return Section("", "Impossible statistics", (table(columns, rows),))


def inputs_of(row: Mapping) -> str:
    """What is hard about the inputs of an audit's row."""
    return _spaced(row["condition"] or "")


def _errors_table(rows: Sequence[Mapping]) -> Table:
    cells = {
        (_way(row), row["condition"]): _cell(row) for row in rows if row["condition"]
    }
    ways, conditions = unique(way for way, _ in cells), unique(
        condition for _, condition in cells
    )
    return table(
        ["", *map(_spaced, conditions)],
        (
            [way, *(cells.get((way, condition), "") for condition in conditions)]
            for way in ways
        ),
    )


def _spaced(condition: str) -> str:
    return condition.replace("_", " ")


def _way(row: Mapping) -> str:
    return f"{row['variant']} · {row['dtype']}{_WHOSE[row['whose']]}"


def _cell(row: Mapping) -> Cell:
    if row["failed"]:
        return Marked(_what_failed(row), Mark.BAD)
    errors = [_worst(row, but=_SCALE)]
    if row.get(_SCALE) is not None:
        errors.append((_SCALE, row[_SCALE]))
    return join(
        " · ",
        (
            Marked(_error(*error), Mark.BAD) if error[1] > _LIMIT else _error(*error)
            for error in errors
        ),
    )


def _what_failed(row: Mapping) -> str:
    """ "n is negative in 7 of 16, n wrong by 2.6 times itself"."""
    return (
        row["failed"]
        if row.get("n") is None
        else f"{row['failed']}, {_error('n', row['n'])}"
    )


def _worst(row: Mapping, but: str | None = None) -> tuple[str, float]:
    """The largest of the row's errors but one, with its key; 0 where it has none."""
    keys = [key for key in row if key not in _FACTS and key != but]
    return max(
        ((key, row[key]) for key in keys if row[key] is not None),
        key=lambda item: item[1],
        default=(keys[0] if keys else "error", 0.0),
    )


def _error(key: str, error: float) -> str:
    if error <= _LIMIT:
        return f"{_SYMBOLS.get(key, key)} " + (
            f"{error:.0e}".replace("e-0", "e-") if error else "0"
        )
    return f"{_SYMBOLS.get(key, key)} wrong by " + (
        f"{100 * error:.2g}%" if error < 0.995 else f"{error:.3g} times itself"
    )


def _conclusions(rows: Sequence[Mapping]) -> Iterator[str]:
    """For each condition the worst way, the worst of this suite's, and the best if that
    is bad; then what did not run.
    """
    for condition in unique(row["condition"] for row in rows if row["condition"]):
        by_badness = sorted(
            (row for row in rows if row["condition"] == condition), key=_badness
        )
        ours = [row for row in by_badness if row["whose"] == "ours"]
        parts = [f"the worst is {_describe(by_badness[-1])}"]
        if ours and ours[-1] is not by_badness[-1]:
            parts.append(f"the worst of this suite's {_describe(ours[-1])}")
        comparable = [
            row
            for row in by_badness
            if row.get(_SCALE, 0.0) is not None and not row["failed"]
        ]
        if comparable and ours and _badness(ours[-1]) > (False, _LIMIT):
            parts.append(f"the best {_describe(comparable[0])}")
        yield f"{_spaced(condition)}: {'; '.join(parts)}."
    for row in rows:
        if not row["condition"]:
            yield f"{_way(row)} {'was not run' if row['not_run'] else 'failed'}: {row['not_run'] or row['failed']}."


def _badness(row: Mapping) -> tuple[bool, float]:
    return bool(row["failed"]), _worst(row)[1]


def _describe(row: Mapping) -> str:
    """ "torch_ghost · bfloat16, n 2e-4"."""
    return (
        f"{_way(row)}, {_what_failed(row) if row['failed'] else _error(*_worst(row))}"
    )


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


def broken(run: Run) -> list[str]:
    """The variants and files that count against the run, each with its status."""
    return [
        *unique(
            f"{record.op}/{record.variant} ({record.status})"
            for record in run.records
            if is_broken(record.status, record.reason)
        ),
        *(f"{one['file']} ({one['status']})" for one in run.broken_files),
    ]


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
