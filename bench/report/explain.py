"""One case on one screen: what it took, what it could take at best, which rung it
stands on, what the compilers say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from batchline.bench import units
from batchline.bench.report import gpu_clocks, latency_law, static
from batchline.bench.report.fitting import TERMINAL, wrapped
from batchline.bench.stats import intervals, roofline
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import crossovers, ranking
from batchline.bench.verdicts.laws import latency_laws, launch_waves

_MOST_COMPILED = 6


def screen(run: Run, case: str, where: str) -> str:
    """The case as `run`, which has it, says; `where` says which run that is."""
    record = next(record for record in run.records if record.id == case)
    return "\n".join(_lines(run, record, where))


def _lines(run: Run, record: Record, where: str) -> Iterator[str]:
    variant = run.about["variants"][f"{record.op}/{record.variant}"]
    yield wrapped(f"{record.id}: {variant['idea']}")
    yield wrapped(
        f"{run.about['scenarios'][record.op][record.scenario]}; {run.machine['device_name']}, "
        f"{run.about['profile']} run of {run.about['started'][:10]}, {where}"
    )
    yield ""
    rows = [*_measured(run, record), *_rungs(run, record, variant["builds_on"])]
    rows += [("compiled", words) for words in _compiled(run, record)]
    yield TERMINAL.render(["", ""], rows)


def _measured(run: Run, record: Record) -> Iterator[tuple[str, str]]:
    if record.status != MEASURED:
        yield "no time", (
            f"{record.status}: {record.reason}" if record.reason else record.status
        )
        return
    facts, first, ceilings = record.facts, record.facts["clock"], run.about["ceilings"]
    low, high = record.quartiles_s
    yield "time", (
        f"{units.duration(record.median_s)} ±{intervals.median_precision(record.samples_s):.1%} by {first}; half of "
        f"{len(record.samples_s)} samples from {units.duration(low)} to {units.duration(high)}"
    )
    for name, clock in facts["clocks"].items():
        if name != first:
            yield "", (
                f"by {name}: {clock['why_not']}"
                if "why_not" in clock
                else f"{units.duration(clock['median_s'])} ±{clock['precision']:.1%} by {name}"
            )
        if "alone" in clock:
            yield "", f"{name}: {clock['alone']}"
    if words := gpu_clocks.sustained(facts):
        yield "sustained", f"{words}, over {facts['sustained']['seconds']:g} s of calls in a row; not ranked"
    if words := gpu_clocks.of_problem(facts):
        yield "GPU clock", f"{words}, at the looks during this problem"
    if ceilings:
        yield from _floors(record, first, ceilings)
    else:
        yield "floor", f"unknown, for the run has no ceilings: {run.about['why_no_ceilings']}"
    yield from _over_the_batch(run, record)
    if why := ranking.why_unranked(record):
        yield "not ranked", why
    yield "memory", _memory(facts)
    yield "error", (
        f"{facts['error_of_tolerance']:.2g} of the tolerance against fp64"
        f"{', a wider one of its own' if facts['own_tolerance'] else ''}"
    )
    if "config" in facts:
        chosen = " ".join(f"{name}={value}" for name, value in facts["config"].items())
        yield "configuration", f"{chosen} ({facts['config_source']})"


def _floors(record: Record, clock: str, ceilings: Mapping) -> Iterator[tuple[str, str]]:
    floors = roofline.floors(record.facts, record.dtype, clock, ceilings)
    bound = roofline.bound(record.facts, record.dtype, clock, record.median_s, ceilings)
    work = {
        roofline.LAUNCH: "an empty launch",
        roofline.COMPUTE: f"{record.facts['flops']:.3g} FLOP",
        roofline.MEMORY: f"{units.size(record.facts['least_bytes'])} by memory",
        roofline.CACHE: f"{units.size(record.facts['least_bytes'])} in the cache",
    }
    yield "regime", (
        f"{bound.regime}: {bound.share:.0%} of what that ceiling allows, "
        f"{units.ratio(record.median_s / bound.least_s)} its floor"
        if bound.least_s
        else bound.regime
    )
    said = [
        f"{work[regime]} {units.duration(least_s)}"
        for regime, least_s in floors.items()
        if least_s
    ]
    yield "floor", "; ".join(said)


def _over_the_batch(run: Run, record: Record) -> Iterator[tuple[str, str]]:
    alike = [
        other
        for other in run.records
        if (other.op, other.variant, other.scenario, other.dtype)
        == (record.op, record.variant, record.scenario, record.dtype)
    ]
    for law in latency_laws(alike, launch_waves(run)).values():
        yield "over the batch", latency_law.words(law)


def _memory(facts: Mapping) -> str:
    if facts.get("peak_bytes") is None:
        return f"unknown ({facts['memory_method']})"
    kept = (
        f" and {units.size(facts['kept_bytes'])} kept for good"
        if facts.get("kept_bytes")
        else ""
    )
    return (
        f"{units.size(facts['peak_bytes'])} above {units.size(facts['input_bytes'])} of inputs, of which "
        f"{units.size(facts['output_bytes'])} outputs{kept} ({facts['memory_method']})"
    )


def _rungs(run: Run, record: Record, below: str | None) -> Iterator[tuple[str, str]]:
    """The rung below, PyTorch's fastest and the fastest of all on the same problem."""
    here = {
        other.variant: other
        for other in run.records
        if ranking.problem_of(other) == ranking.problem_of(record)
    }
    if below:
        yield "the rung below", _against(
            record, here.get(below.partition("/")[2]), below.partition("/")[2]
        )
    timed = list(filter(ranking.may_be_chosen, here.values()))
    opponent = ranking.opponents(timed).get(ranking.problem_of(record))
    if (
        opponent
        and opponent is not record
        and f"{record.op}/{opponent.variant}" != below
    ):
        yield "PyTorch's fastest", _against(record, opponent, opponent.variant)
    fastest = min(timed, key=lambda other: other.median_s, default=None)
    if fastest is record:
        yield "the fastest here", "this one"
    elif fastest and fastest is not opponent:
        yield "the fastest here", _against(record, fastest, fastest.variant)


def _against(record: Record, other: Record | None, name: str) -> str:
    if other is None:
        return f"{name}: not in this run"
    if other.status != MEASURED:
        return f"{name}: {other.status}: {other.reason}"
    said = f"{name}: {units.duration(other.median_s)}"
    if record.status != MEASURED:
        return said
    told = {record.variant: "this one", other.variant: "that one"}.get(
        crossovers.leader(record, other)
    )
    if told is None:
        return f"{said}, not told from this one"
    ratio = other.median_s / record.median_s
    return f"{said}; {told} is {units.ratio(max(ratio, 1 / ratio))} as fast"


def _compiled(run: Run, record: Record) -> Iterator[str]:
    """What the compilers made of it: on the scenario itself where that was compiled, or
    else on the example.
    """
    name = f"{record.op}/{record.variant}"
    entries = [
        entry
        for entry in run.about["compiled"]
        if (entry["variant"], entry["dtype"]) == (name, record.dtype)
    ]
    own = [entry for entry in entries if entry["scenario"] == record.scenario]
    for entry in (own or entries)[:_MOST_COMPILED]:
        config = f" {entry['config']}" if entry.get("config") else ""
        kernel = f"{entry['kernel']}{config}" if "kernel" in entry else "a launch"
        yield (
            f"sm_{entry['architecture']} on {entry['scenario']}/B{entry['batch']}: {kernel}: "
            f"{static.shown_facts(entry)}"
        )
