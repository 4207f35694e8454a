"""The ladder of an op: each rung's idea, what it bought over the rung below, and what
the compiler made of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from batchline.bench import units
from batchline.bench.report.static import shown_facts
from batchline.bench.report.tables import Style, unique
from batchline.bench.statuses import MEASURED, UNSUPPORTED
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import ranking
from batchline.bench.verdicts.compiled_changes import why_no_code
from batchline.bench.verdicts.ranking import Gain
from batchline.kernels.architectures import WITHOUT_GPU

_OWN_BOUND = " (held to an error bound of its own)"
_SOURCES = ("tuned", "tuned nearby", "rule")


def table(run: Run, op: str, style: Style, compiled: bool = True) -> str:
    """Every variant of the op in the run, from the lowest rung up; `compiled`: with its
    example's compiled facts.
    """
    variants = {
        name: facts
        for name, facts in run.about["variants"].items()
        if name.startswith(f"{op}/")
    }
    records = [record for record in run.records if record.op == op]
    rows = []
    for name, height in ranking.climb(variants):
        below = variants[name]["builds_on"]
        rows.append(
            [
                f"{'· ' * height}{name.partition('/')[2]}",
                variants[name]["idea"]
                + (_OWN_BOUND if variants[name]["own_tolerance"] else "")
                + _gives(run, op, variants[name].get("gives")),
                _gain(ranking.over_rung_below(records, name, below)) if below else "",
                _gain(ranking.over_opponent(records, name))
                or _why_not(run, records, name),
                *([_static(run, name)] if compiled else []),
            ]
        )
    return style.render(
        [
            "rung",
            "idea",
            "over the rung below",
            "over PyTorch's fastest",
            *(["compiled"] if compiled else []),
        ],
        rows,
    )


def configurations(run: Run, op: str, style: Style) -> str | None:
    """Where the configurations of the op's tunable variants came from; None where it
    has none that was measured.
    """
    chosen: dict[str, Counter] = {}
    for record in run.records:
        if record.op == op and record.facts.get("config_source") in _SOURCES:
            chosen.setdefault(record.variant, Counter())[
                record.facts["config_source"]
            ] += 1
    if not chosen:
        return None
    tuning = run.about["tuning"][op]
    none = (
        f"`{tuning['file']}` can't be read ({tuning['why_not']})"
        if tuning.get("why_not")
        else f"There is no `{tuning['file']}`"
    )
    origin = (
        f"Configurations were tuned on this device: `{tuning['file']}`, {tuning['measured']}, in "
        f"{tuning['seconds']:.0f} s, none of them in a sample here."
        if tuning["measured"]
        else f"{none}: every configuration is its rule's. `batchline tune` measures and writes it."
    )
    table_ = style.render(
        ["variant", *_SOURCES],
        (
            [variant, *(str(counts[source]) for source in _SOURCES)]
            for variant, counts in chosen.items()
        ),
    )
    return f"{origin}\n\n{table_}"


def _gives(run: Run, op: str, count: int | None) -> str:
    """ " (gives ḡ, n only)" of a variant that gives the first `count` of the op's
    outputs, or nothing.
    """
    if count is None:
        return ""
    outputs = re.findall(r"(\w+)\[", run.about["signatures"][op].partition("→")[2])
    return f" (gives {', '.join(outputs[:count])} only)"


def _why_not(run: Run, records: Sequence[Record], variant: str) -> str:
    """What became of a variant that has no gain: "wrong", "not ranked", "not timed
    here", "compiled, not yet run".
    """
    if not run.machine.get("gpu") and any(
        row["variant"] == variant and not why_no_code(row)
        for row in run.about["compiled"]
    ):
        return "compiled, not yet run"
    statuses = unique(
        (
            "not ranked"
            if record.status == MEASURED and ranking.why_unranked(record)
            else record.status
        )
        for record in records
        if f"{record.op}/{record.variant}" == variant
    )
    return ", ".join(
        status for status in statuses if status != UNSUPPORTED or len(statuses) == 1
    )


def _gain(gain: Gain | None) -> str:
    """ "1.80x (0.90x to 3.20x, 24 cases)", or nothing."""
    if gain is None:
        return ""
    spread = (
        f"{units.ratio(gain.least)} to {units.ratio(gain.most)}, "
        if gain.cases > 1
        else ""
    )
    return f"{units.ratio(gain.mean)} ({spread}{gain.cases} case{'s' if gain.cases > 1 else ''})"


def _static(run: Run, variant: str) -> str:
    """The facts of its example in the first dtype compiled, for the machine's
    architecture or sm_90.
    """
    gpu = run.machine.get("gpu")
    architecture = (
        int(gpu["compute_capability"].replace(".", "")) if gpu else WITHOUT_GPU
    )
    rows = [
        row
        for row in run.about["compiled"]
        if row["variant"] == variant and row["example"]
    ]
    return _first_dtype(
        [row for row in rows if row["architecture"] == architecture] or rows
    )


def _first_dtype(rows: Sequence[Mapping]) -> str:
    if not rows:
        return ""
    same = [
        row
        for row in rows
        if (row["dtype"], row["architecture"])
        == (rows[0]["dtype"], rows[0]["architecture"])
    ]
    return f"sm_{rows[0]['architecture']} {rows[0]['dtype']}: " + "; ".join(
        map(shown_facts, same)
    )
