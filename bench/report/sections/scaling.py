"""The mean gradient over several ranks: its time by ranks and batch, the law of it, and
how it scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.noise.rank_scaling import Pair, Scaling, ScalingLaw
from batchline.bench.report import figures, page_plots
from batchline.bench.report.document import (
    Figure,
    Mark,
    Marked,
    Only,
    Part,
    Place,
    Section,
    Table,
    Text,
    table,
)
from batchline.bench.report.findings import Findings
from batchline.bench.store.records import Run

_BELIEVED = 0.25  # of a law's time
_FIRST_COUNTS_OF_ALL_PARTS = 3  # of ranks, from which a law's last part follows


def section(run: Run, findings: Findings) -> Section | None:
    """What is stored beside the run of the mean gradient over ranks, or None."""
    result = findings.scaling
    if result is None:
        return None
    return Section(
        "ranks",
        "The mean gradient over ranks",
        (
            Text(_provenance(result, run.machine)),
            Only(Place.README, (Figure(_TITLE, figures.RANKS),)),
            Only(Place.PAGE, tuple(_figures(result))),
            *scaling(result),
        ),
    )


_TITLE = "Time of the mean gradient over the samples of each rank"


def _provenance(result: Scaling, machine: Mapping) -> str:
    times = result.times
    name = times.machine["device_name"]
    other = (
        f" **That is another machine than this run's, {machine['device_name']}.**"
        if name != machine["device_name"]
        else ""
    )
    day = f", {times.started[:10]}" if times.started else ""
    return f"Measured by `batchline all-reduce` on {name}{day}.{other}"


def _figures(result: Scaling) -> Iterator[Figure]:
    for ranks, plot in page_plots.ranks(result).items():
        title = f"{_TITLE}, {describe_ranks(result, ranks)}"
        yield Figure(title, key=f"ranks {ranks}", plot=plot)


def scaling(result: Scaling) -> Iterator[Part]:
    """Everything, in the order of its reading."""
    for (way, wire), why in result.wrong.items():
        yield Text(f"{way} with {wire} on the wire is wrong on {why}. It has no time.")
    if not result.medians_s:
        return
    yield Text(_how(result))
    yield from map(Text, _sharing(result))
    yield _by_batch(result, result.medians_s, result.ranks, units.duration)
    yield from _law_of(result)
    yield from _efficiencies(result)
    yield Text(
        "The error against fp64 over all samples of all ranks (relative, of the whole gradient), the largest:"
    )
    yield table(
        ["way", "wire", *(describe_ranks(result, one) for one in result.ranks)],
        (
            [*pair, *(_error(errors.get(ranks)) for ranks in result.ranks)]
            for pair, errors in result.errors.items()
        ),
    )


def describe_ranks(result: Scaling, ranks: int) -> str:
    """ "4 ranks on 2 cores" where they share them, else "4 ranks"."""
    words = "1 rank" if ranks == 1 else f"{ranks:,} ranks"
    return f"{words}{_shared(result, ranks)}"


def _shared(result: Scaling, ranks: int) -> str:
    """ " on 2 cores" where so many ranks share them, else ""."""
    if ranks in result.with_a_core_each:
        return ""
    cores = result.times.cores
    return f" on {cores} core{'s' if cores > 1 else ''}"


def _by_batch(
    result: Scaling,
    values: Mapping[Pair, Mapping[tuple[int, int], float]],
    counts: tuple[int, ...],
    text: Callable[[float], str],
) -> Table:
    """A row for each way, wire and count of ranks of which there is a value, a column
    for each batch.
    """
    batches = result.times.batches
    rows = (
        (
            [*pair, f"{ranks:,}{_shared(result, ranks)}"],
            [of_pair.get((ranks, batch)) for batch in batches],
        )
        for pair, of_pair in values.items()
        for ranks in counts
    )
    return table(
        ["way", "wire", "ranks", *(f"B={batch}" for batch in batches)],
        (
            [*names, *("" if one is None else text(one) for one in of_row)]
            for names, of_row in rows
            if any(one is not None for one in of_row)
        ),
    )


def _how(result: Scaling) -> str:
    times = result.times
    busy = (
        f" The machine was busy meanwhile ({times.why_busy}): on a quiet one the times may be shorter."
        if times.why_busy
        else ""
    )
    return (
        f"The mean of {times.parameters:,} parameters over the samples of all ranks, timed over "
        f"{times.backend} between processes of this machine: the slowest rank's, in turns. "
        f"A bucket is {units.size(times.bucket_bytes)}. Each way was right on every probe before it was timed."
        f"{busy}"
    )


def _sharing(result: Scaling) -> Iterator[str]:
    shared = [one for one in result.ranks if one not in result.with_a_core_each]
    if shared:
        cores = result.times.cores
        yield (
            f"{_listed(shared)} share {cores} core{'s' if cores > 1 else ''}: that is no measurement of scaling. "
            "Their times are in the table, and left out of the law and of the efficiencies."
        )


def _law_of(result: Scaling) -> Iterator[Part]:
    if not result.laws:
        return
    yield Text(
        "The law of it, for B samples on each of r ranks, and the measured time that is the furthest from it. "
        f"A law that is off by more than {_BELIEVED:.0%} predicts nothing."
    )
    yield table(
        ["way", "wire", "t(B, r)", "furthest from it"],
        ([*pair, _law(law), _worst(law)] for pair, law in result.laws.items()),
    )
    yield from map(Text, _untold(result))


def _untold(result: Scaling) -> Iterator[str]:
    """What the laws can't tell apart, from so few counts and batches."""
    if len(result.times.batches) == 1:
        yield "Of one batch the law can't say what a sample takes: it holds for that batch."
    if len(result.with_a_core_each) < _FIRST_COUNTS_OF_ALL_PARTS:
        yield (
            f"It is of {_listed(result.with_a_core_each)}. From so few counts the time of a message and that of its "
            "bytes can't be told apart: the law holds for no others."
        )


def _listed(counts: Sequence[int]) -> str:
    """ "1 and 2 ranks"."""
    listed = " and ".join(f"{one:,}" for one in counts)
    return f"{listed} rank{'s' if counts[-1] > 1 else ''}"


def _efficiencies(result: Scaling) -> Iterator[Part]:
    """Weak and strong scaling, of ranks that share nothing."""
    more = result.with_a_core_each[1:]
    for text, efficiency in (
        (
            "Weak scaling, as efficiency: one rank's time over that of r ranks, each with the same B. 100% is perfect.",
            result.weak,
        ),
        (
            "Strong scaling, as efficiency: one rank's time over r times that of r ranks, with B samples in all. "
            "100% is perfect.",
            result.strong,
        ),
    ):
        values = {
            pair: {
                (ranks, batch): value
                for ranks in more
                for batch in result.times.batches
                if (value := efficiency(pair, ranks, batch)) is not None
            }
            for pair in result.medians_s
        }
        if any(values.values()):
            yield Text(text)
            yield _by_batch(result, values, more, lambda share: f"{share:.0%}")


def _law(law: ScalingLaw) -> str:
    parts = [units.duration(law.call_s)] if law.call_s else []
    if law.sample_s:
        parts.append(f"B·{units.duration(law.sample_s)}")
    sent = [units.duration(law.message_s)] if law.message_s else []
    if law.gradient_s:
        sent.append(f"{units.duration(law.gradient_s)}/r")
    if sent:
        parts.append(f"2(r − 1)·({' + '.join(sent)})")
    return " + ".join(parts)


def _worst(law: ScalingLaw) -> str | Marked:
    text = f"{law.worst:+.0%}"
    return Marked(text, Mark.BAD) if abs(law.worst) > _BELIEVED else text


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
