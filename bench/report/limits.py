"""What bounds the results, as tables: the machine's ceilings, and how memory grows with
the batch until it is full.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchline.bench import units
from batchline.bench.store.records import Run
from batchline.bench.report.tables import Style, unique
from batchline.bench.stats.fits import MemoryLaw
from batchline.bench.verdicts import laws

_PAGES_BYTES = 8192  # what a resident set rounds away


def ceilings(run: Run, style: Style) -> str:
    """The ceilings measured in this run, a row each; or why there are none."""
    found = run.about["ceilings"]
    if not found:
        why = run.about["why_no_ceilings"] or "nothing ran"
        return f"Its ceilings were not measured ({why}): there are no shares and no regimes."
    rows = [
        ["copy, read plus written", f"{_rate(found['copy_bytes_per_s'])}"],
        ["read only", f"{_rate(found['read_bytes_per_s'])}"],
        [
            f"out of the caches (last level {units.size(found['cache_bytes'])})",
            f"{_rate(found['cache_bytes_per_s'])}",
        ],
    ]
    rows += [
        [f"matrix product, {dtype}", f"{flops / 1e9:,.0f} GFLOP/s"]
        for dtype, flops in found["matmul_flops_per_s"].items()
    ]
    rows += [
        [f"multiply-adds in L1, {dtype}", f"{flops / 1e9:,.0f} GFLOP/s"]
        for dtype, flops in found["fma_flops_per_s"].items()
    ]
    rows += [
        [f"empty launch by {clock}", units.duration(seconds)]
        for clock, seconds in found["launch_s"].items()
    ]
    table = style.render(["ceiling", "measured in this run"], rows)
    if found.get("quiet", True):
        return table
    return f"{table}\n\nThe machine was busy whenever they were measured: they are too low, and their shares too high."


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.1f} GB/s"


def memory_law(run: Run, style: Style) -> str | None:
    """m(B) = fixed + per sample · B for each variant and scenario, and the batch at
    which the device is full.
    """
    growths = laws.memory_growths(run.records)
    if not growths:
        return None
    room = run.about["room_bytes"]
    tried = {
        (row["op"], row["variant"], row["scenario"], row["dtype"]): row
        for row in run.about["capacity"]
    }
    several_dtypes = len(unique(growth.dtype for growth in growths)) > 1
    rows = []
    for growth in growths:
        key = growth.op, growth.variant, growth.scenario, growth.dtype
        scenario = (
            f"{growth.scenario} · {growth.dtype}" if several_dtypes else growth.scenario
        )
        rows.append(
            [
                f"{growth.op}/{growth.variant}",
                scenario,
                _bytes(growth.peak.fixed),
                _per_sample(growth.peak, growth.batch),
                _per_sample(growth.inputs, growth.batch),
                f"{growth.total.misfit:.1%}",
                _largest(growth, room),
                _verdict(tried.get(key)),
            ]
        )
    where = (
        f"The process had room for {units.size(room)}."
        if room
        else "The room was not known."
    )
    trial = (
        "for each variant the quickest of them was tried: a call 5% below must fit, one 5% above must not."
        if tried
        else "none was tried in this run."
    )
    return (
        "The peak above the inputs is fixed + per sample · B (least squares over the batches measured; the misfit "
        f"is the worst batch's, of the largest total). {where} The largest batch is where inputs and peak together "
        f"fill it; {trial}\n\n"
        + style.render(
            [
                "variant",
                "scenario",
                "fixed",
                "per sample",
                "inputs per sample",
                "misfit",
                "largest batch",
                "tried",
            ],
            rows,
        )
    )


def _per_sample(line: MemoryLaw, largest_batch: int) -> str:
    """0 B where the growth up to the largest batch is a rounding of the resident set."""
    return _bytes(
        line.per_sample if abs(line.per_sample) * largest_batch > _PAGES_BYTES else 0
    )


def _bytes(count: float) -> str:
    return units.size(count) if count >= 0 else f"-{units.size(-count)}"


def _largest(growth: laws.MemoryGrowth, room: int | None) -> str:
    if room is None:
        return ""
    if not growth.is_a_line:
        return "no law: it does not grow in a line"
    batch = growth.largest_batch(room)
    return f"{batch:,}" if batch is not None else "does not grow"


def _verdict(row: Mapping | None) -> str:
    if row is None:
        return ""
    if "why_not" in row:
        return f"no: {row['why_not']}"
    below, above = row["fits"]["95%"], row["fits"]["105%"]
    if below and not above:
        return (
            f"confirmed: {row['predicted']:,} ±5% fill {units.size(row['room_bytes'])}"
        )
    what = (
        f"5% above {row['predicted']:,} still fits"
        if below
        else f"5% below {row['predicted']:,} does not fit"
    )
    return f"refuted: {what} in {units.size(row['room_bytes'])}"
