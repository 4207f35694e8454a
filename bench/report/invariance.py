"""Batch invariance: whether a sample's result depends on the batch that it is in, and
what it costs if it must not.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchline.bench import units
from batchline.bench.store.records import Run
from batchline.bench.report.tables import Style
from batchline.bench.verdicts import choosing as verdicts
from batchline.bench.verdicts.choosing import Invariance, Price

NOTE = (
    "A sample's result is compared bit by bit between batches: the first samples of the largest batch that takes "
    "milliseconds are a smaller batch of their own. Where it differs, what a sample gets depends on who else is in "
    'its batch. "Run to run": all outputs are the same when called again and on copies of the inputs. An op\'s '
    "own call changes its variant with the batch, so what it chooses from may be invariant, and it is not."
)
_MOST_NAMED = 3


def section(run: Run, style: Style) -> str | None:
    """The table, then the price of choosing only among invariant variants; None where
    the run did not look.
    """
    rows = run.about.get("invariance", [])  # older runs have none
    if not rows:
        return None
    table = style.render(
        ["variant", "a sample's bits in every batch", "run to run", "differs"],
        map(_row, verdicts.invariance_by_variant(rows)),
    )
    return "\n\n".join(
        [NOTE, table, *map(_price, verdicts.invariance_prices(rows, run.records))]
    )


def _row(one: Invariance) -> Sequence[str]:
    same = one.scenarios - len(one.varies)
    kept = (
        "no row a sample"
        if not one.scenarios
        else (
            "the same"
            if not one.varies
            else f"the same on {same} of {one.scenarios} scenarios"
        )
    )
    return (
        f"{one.op}/{one.variant} · {one.dtype}",
        kept,
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
