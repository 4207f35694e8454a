"""The numerics of the statistics: how far each way of computing them is from fp64, and
which goes wrong where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from batchline.bench.store.records import Run
from batchline.bench.report.tables import Style, unique

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
_EXPLAINED = (
    "Each way of computing the statistics against fp64, on inputs that are hard on arithmetic "
    "(reports/methodology/measuring.md has them). A cell is the worst of the errors of ḡ (‖Δ‖/‖ḡ‖), n (|Δn_b|/n_b) "
    "and d (|Δd_b|/(‖g_b‖·‖ḡ‖)), then that "
    f"of the simple noise scale which {{ḡ, n}} give. Errors over {_LIMIT:.1%} are marked; a squared norm below zero "
    "fails its cell, and nothing is clamped. What is not of this suite is there because people write it."
)


def section(run: Run, style: Style) -> str | None:
    """What the figures are, then for each op a table and its findings; None where the
    run audited nothing.
    """
    parts = []
    for op, rows in _by_op(run).items():
        parts += [
            f"**{op}**",
            _table(rows, style),
            "\n".join(f"- {sentence}" for sentence in _findings(rows)),
        ]
    return "\n\n".join([_EXPLAINED, *parts]) if parts else None


def findings(run: Run) -> str:
    """The findings alone, a line each; "" where the run audited nothing."""
    return "\n".join(
        f"{op}: {sentence}"
        for op, rows in _by_op(run).items()
        for sentence in _findings(rows)
    )


def _by_op(run: Run) -> dict[str, list[Mapping]]:
    rows = run.about.get("audit", [])  # older runs have none
    return {
        op: [row for row in rows if row["op"] == op]
        for op in unique(row["op"] for row in rows)
    }


def _table(rows: Sequence[Mapping], style: Style) -> str:
    cells = {
        (_way(row), row["condition"]): _cell(row, style)
        for row in rows
        if row["condition"]
    }
    ways, conditions = unique(way for way, _ in cells), unique(
        condition for _, condition in cells
    )
    return style.render(
        ["", *map(_words, conditions)],
        (
            [way, *(cells.get((way, condition), "") for condition in conditions)]
            for way in ways
        ),
    )


def _words(condition: str) -> str:
    return condition.replace("_", " ")


def _way(row: Mapping) -> str:
    return f"{row['variant']} · {row['dtype']}{_WHOSE[row['whose']]}"


def _cell(row: Mapping, style: Style) -> str:
    if row["failed"]:
        return style.best.format(_what_failed(row))
    errors = [_worst(row, but=_SCALE)]
    if row.get(_SCALE) is not None:
        errors.append((_SCALE, row[_SCALE]))
    return " · ".join(
        style.best.format(_error(*error)) if error[1] > _LIMIT else _error(*error)
        for error in errors
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


def _findings(rows: Sequence[Mapping]) -> Iterator[str]:
    """For each condition the worst way, the worst of this suite's, and the best if that
    is bad; then what did not run.
    """
    for condition in unique(row["condition"] for row in rows if row["condition"]):
        found = sorted(
            (row for row in rows if row["condition"] == condition), key=_badness
        )
        ours = [row for row in found if row["whose"] == "ours"]
        words = [f"the worst is {_told(found[-1])}"]
        if ours and ours[-1] is not found[-1]:
            words.append(f"the worst of this suite's {_told(ours[-1])}")
        comparable = [
            row
            for row in found
            if row.get(_SCALE, 0.0) is not None and not row["failed"]
        ]
        if comparable and ours and _badness(ours[-1]) > (False, _LIMIT):
            words.append(f"the best {_told(comparable[0])}")
        yield f"{_words(condition)}: {'; '.join(words)}."
    for row in rows:
        if not row["condition"]:
            yield f"{_way(row)} {'was not run' if row['not_run'] else 'failed'}: {row['not_run'] or row['failed']}."


def _badness(row: Mapping) -> tuple[bool, float]:
    return bool(row["failed"]), _worst(row)[1]


def _told(row: Mapping) -> str:
    """ "torch_ghost · bfloat16, n 2e-4"."""
    return (
        f"{_way(row)}, {_what_failed(row) if row['failed'] else _error(*_worst(row))}"
    )
