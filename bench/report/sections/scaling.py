"""The mean gradient over several ranks: its time by ranks and batch, the law of it, and
how it scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from batchline.bench import units
from batchline.bench.noise.rank_scaling import Pair, Scaling, ScalingLaw
from batchline.bench.report.document import Part, Table, Text, table

_BELIEVED = 0.25  # of a law's time


def scaling(result: Scaling) -> Iterator[Part]:
    """Everything, in the order of its reading."""
    for (way, wire), why in result.wrong.items():
        yield Text(f"{way} with {wire} on the wire is wrong on {why}. It has no time.")
    if not result.medians_s:
        return
    yield Text(_how(result))
    yield _by_batch(
        result,
        lambda pair, ranks, batch: units.duration(result.medians_s[pair][ranks, batch]),
        result.ranks,
    )
    yield Text(
        "The law of it, for B samples on each of r ranks. One that is off by more than "
        f"{_BELIEVED:.0%} predicts nothing."
    )
    yield table(
        ["way", "wire", "t(B, r)", "furthest from it"],
        ([*pair, *_law(result.law(pair))] for pair in result.medians_s),
    )
    yield Text(
        "Weak scaling: one rank's time over that of r ranks, each with the same B. 100% is perfect."
    )
    yield _by_batch(
        result,
        lambda *place: _share(result.weak(*place)),
        result.ranks[1:],
    )
    yield Text(
        "Strong scaling: how many times as fast r ranks are as one, with B samples dealt among them. "
        "r is perfect."
    )
    yield _by_batch(
        result,
        lambda *place: _times(result.strong(*place)),
        result.ranks[1:],
    )
    yield Text(
        "The error against fp64 over all samples of all ranks (relative, of the whole gradient), the largest:"
    )
    yield table(
        ["way", "wire", *(f"{ranks} ranks" for ranks in result.ranks)],
        (
            [*pair, *(f"{errors[ranks]:.2g}" for ranks in result.ranks)]
            for pair, errors in result.errors.items()
        ),
    )


def _by_batch(
    result: Scaling, cell: Callable[[Pair, int, int], str], counts: tuple[int, ...]
) -> Table:
    """A row for each way, wire and count of ranks of which there is anything to say, a
    column for each batch.
    """
    rows = [
        [*pair, str(ranks), *(cell(pair, ranks, batch) for batch in result.batches)]
        for pair in result.medians_s
        for ranks in counts
    ]
    return table(
        ["way", "wire", "ranks", *(f"B={batch}" for batch in result.batches)],
        [row for row in rows if any(row[3:])],
    )


def _how(result: Scaling) -> str:
    most = result.ranks[-1]
    shared = most > result.cores and result.backend == "gloo"
    cores = f", which share its {result.cores} cores" if shared else ""
    busy = (
        f" The machine was busy meanwhile ({result.why_busy}): on a quiet one the times may be shorter."
        if result.why_busy
        else ""
    )
    return (
        f"The mean of {result.parameters:,} parameters over the samples of all ranks, timed over "
        f"{result.backend} between processes of this machine{cores}: the slowest rank's, in turns. "
        f"A bucket is {units.size(result.bucket_bytes)}. Each way was right on every probe before it was timed.{busy}"
    )


def _law(law: ScalingLaw) -> tuple[str, str]:
    parts = [units.duration(law.call_s)] if law.call_s else []
    if law.sample_s:
        parts.append(f"B·{units.duration(law.sample_s)}")
    sent = [units.duration(law.message_s)] if law.message_s else []
    if law.gradient_s:
        sent.append(f"{units.duration(law.gradient_s)}/r")
    if sent:
        parts.append(f"2(r − 1)·({' + '.join(sent)})")
    return " + ".join(parts), f"{law.worst:+.0%}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _times(value: float | None) -> str:
    return "" if value is None else units.ratio(value)
