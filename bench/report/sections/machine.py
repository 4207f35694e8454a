"""The machine of a run, what it can do and how it was measured: its ceilings, its
clocks, and what measuring took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.report.document import (
    FILES,
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
from batchline.bench.store.records import Record, Run
from batchline.kernels.architectures import taken_for, why_too_old

_USUAL_BUSY_SHARE = 0.1  # bench.measure.machine.state's, which imports torch
_POWER_CAP = "power cap"  # bench.measure.machine.state's, which imports torch


def section(run: Run, findings: Findings) -> Section:
    """The machine, its ceilings, and how it was measured."""
    return Section(
        "machine",
        "The machine",
        (
            facts(run),
            Only(
                FILES,
                (
                    Section("", "What it can do", tuple(ceilings(run))),
                    Section("", "How it was measured", (Text(how_measured(run)),)),
                ),
            ),
            Only(Place.CI, tuple(ceilings(run))),
        ),
    )


def _chip(capability: str) -> str:
    """ "sm_90" of "9.0", and of a chip without an entry in the table of architectures
    what it is taken for.
    """
    number = int(capability.replace(".", ""))
    return f"sm_{number}" if why_too_old(number) else str(taken_for(number))


def facts(run: Run) -> Table:
    """The machine and the versions, one fact per row."""
    machine, gpu = run.machine, run.machine.get("gpu")
    rows = [
        ["timed on", machine["device_name"]],
        ["processor", ", ".join(_processor(machine))],
    ]
    if "ranks" in machine:
        rows.append(["devices", _devices(machine["ranks"])])
    if gpu:
        rows.append(
            [
                "GPU",
                ", ".join(
                    (
                        gpu["name"],
                        _chip(gpu["compute_capability"]),
                        f"{gpu['multiprocessors']} SMs",
                        units.size(gpu["memory_bytes"]),
                        f"driver {gpu['driver']}",
                        f"CUDA {gpu['cuda_of_torch']}",
                    )
                ),
            ]
        )
    rows += [
        ["system", f"{machine['system']}, Python {machine['python']}"],
        [
            "versions",
            ", ".join(
                f"{name} {version}" for name, version in machine["versions"].items()
            ),
        ],
        ["revision", revision(run)],
    ]
    return table(["", ""], rows)


def _devices(ranks: Sequence[Mapping]) -> str:
    machines = len({one["node"] for one in ranks})
    on = "one machine" if machines == 1 else f"{machines} machines"
    return (
        f"{len(ranks)} ranks on {on}, each with a device of its own; the variants of a "
        "problem were measured by one rank, and what came after the cases by rank 0"
    )


def revision(run: Run) -> str:
    """The commit that was measured, and whether there were changes beside it."""
    measured = run.machine["revision"]
    changed = " + uncommitted changes" if measured["dirty"] else ""
    return f"{measured['commit'][:12]}{changed}"


def _processor(machine: Mapping) -> Iterator[str]:
    """What older runs have not stored is left out."""
    yield machine["cpu"]
    yield f"{machine['cpu_cores']} cores"
    if machine.get("cpu_quota") is not None:
        yield f"a quota of {machine['cpu_quota']:g} cores"
    yield f"{machine['cpu_threads_of_torch']} threads in torch"
    if machine.get("cpu_threads_of_numba") is not None:
        yield f"{machine['cpu_threads_of_numba']} in Numba"
    yield units.size(machine["memory_bytes"])
    if machine.get("memory_limit_bytes") is not None:
        yield f"of which a container may use {units.size(machine['memory_limit_bytes'])}"
    if machine.get("most_busy_share", _USUAL_BUSY_SHARE) != _USUAL_BUSY_SHARE:
        yield f"measured while others took up to {machine['most_busy_share']:.0%} of the cores"
    if machine.get("why_no_kernel_cache"):
        yield f"no kernel cache ({machine['why_no_kernel_cache']})"


def ceilings(run: Run) -> list[Part]:
    """The ceilings measured in this run, a row each; or why there are none."""
    measured = run.ceilings
    if not measured:
        why = run.why_no_ceilings or "nothing ran"
        return [
            Text(
                f"Its ceilings were not measured ({why}): there are no shares and no "
                "regimes."
            )
        ]
    rows = [
        ["copy, read plus written", f"{_rate(measured['copy_bytes_per_s'])}"],
        ["read only", f"{_rate(measured['read_bytes_per_s'])}"],
        [
            f"out of the caches (last level {units.size(measured['cache_bytes'])})",
            f"{_rate(measured['cache_bytes_per_s'])}",
        ],
    ]
    rows += [
        [f"matrix product, {dtype}", f"{flops / 1e9:,.0f} GFLOP/s"]
        for dtype, flops in measured["matmul_flops_per_s"].items()
    ]
    rows += [
        [f"multiply-adds in L1, {dtype}", f"{flops / 1e9:,.0f} GFLOP/s"]
        for dtype, flops in measured["fma_flops_per_s"].items()
    ]
    rows += [
        [f"empty launch by {clock}", units.duration(seconds)]
        for clock, seconds in measured["launch_s"].items()
    ]
    parts: list[Part] = [table(["ceiling", "measured in this run"], rows)]
    if not measured.quiet:
        parts.append(
            Text(
                "The machine was busy whenever they were measured: they are too low, and "
                "their shares too high."
            )
        )
    return parts


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.1f} GB/s"


def how_measured(run: Run) -> str:
    timed = [record for record in run.records if record.facts]
    if not timed:
        return "Nothing was timed."
    facts = [record.facts for record in timed]
    clocks = unique(fact["clock"] for fact in facts)
    methods = unique(fact["memory_method"] for fact in facts)
    dropped = sum(fact["discarded"] for fact in facts)
    return (
        f"Clock: {', '.join(clocks)}; variants of a problem were timed in turns. A median is known to "
        f"{precision_reached(run)}, and {run.plan.effort['seconds']:g} s of samples were "
        f"the most that one got; {dropped} samples were dropped because the machine was throttled. "
        f"{_load(facts)}{clocks_of_run(facts)}Memory: {', '.join(methods)}. {_accuracy(timed)}"
        f"{_fences(facts, run.seconds)}{_confirmed(facts)}"
    )


def precision_reached(run: Run) -> str:
    """ "±1.0% in 93% of the cases"; of a run of which something was timed."""
    wanted = run.plan.effort["precision"]
    reached = [
        record.facts["precision"] <= wanted for record in run.records if record.facts
    ]
    return f"±{wanted:.1%} in {sum(reached) / len(reached):.0%} of the cases"


def forecast(run: Run) -> str:
    parts = run.forecast  # None in runs of before
    return f" ({sum(parts.values()):.0f} s were expected)" if parts else ""


def _accuracy(timed: Sequence[Record]) -> str:
    """The worst element's share of its op's tolerance; that of variants with wider
    bounds of their own apart.
    """
    by_op = [
        record.facts["error_of_tolerance"]
        for record in timed
        if not record.facts["own_tolerance"]
    ]
    own = [record for record in timed if record.facts["own_tolerance"]]
    sentences = (
        [f"The worst element of any result was at {max(by_op):.2g} of its tolerance."]
        if by_op
        else []
    )
    if own:
        worst = max(record.facts["error_of_tolerance"] for record in own)
        names = unique(f"{record.op}/{record.variant}" for record in own)
        sentences.append(
            f"Checked against error bounds of their own, and at {worst:.2g} of those: {', '.join(names)}."
        )
    return " ".join(sentences)


def _fences(facts: Sequence[Mapping], run_s: float | None) -> str:
    """What looking after the variants cost: a share of the run, and of the workers'
    time on the cases.
    """
    cases_s = sum(fact.get("task_s", 0.0) for fact in facts)  # runs of before have none
    if not cases_s:
        return ""
    fences_s = sum(fact["fences_s"] for fact in facts if "task_s" in fact)
    of_run = f"{fences_s / run_s:.1%} of the run's {run_s:.0f} s, and " if run_s else ""
    return (
        f" New values, checks of what was timed and fences took {of_run}{fences_s / cases_s:.1%} of the time for "
        "the cases; nothing inside a sample."
    )


def _confirmed(facts: Sequence[Mapping]) -> str:
    """How many gains over the baseline were there again in a process of their own."""
    tried = [
        fact["confirmed"]
        for fact in facts
        if fact.get("confirmed", {}).keys() & {"again", "why_not"}
    ]
    if not tried:
        return ""
    again = sum("again" in one and "unranked" not in one for one in tried)
    return f" {again} of {len(tried)} gains over the baseline were there again where a process of their own was tried."


def _load(facts: Sequence[Mapping]) -> str:
    """What else the processor was busy with: the worst case's share."""
    shares = [
        (fact["state"]["others_share"], fact["state"]["stolen_share"])
        for fact in facts
        if "others_share" in fact.get("state", {})
    ]
    if not shares:
        return ""
    others, stolen = (max(values) for values in zip(*shares))
    return (
        f"In the worst case other processes took {others:.0%} of the cores, and the hypervisor "
        f"{stolen:.0%}. "
    )


def clocks_of_problem(facts: Mapping) -> str | None:
    """The range of the SM clock during the case's problem, and whether a power cap was
    on; None where it is unknown.

    `facts` are a measured case's (bench.store.records.Record).
    """
    seen = _seen_mhz(facts)
    if not seen:
        return None
    return f"SM at {_range(*seen)} MHz{', under a power cap' if _was_capped(facts) else ''}"


def clocks_of_run(facts: Sequence[Mapping]) -> str:
    """The range over all measured cases, and in how many of them a power cap was on; ""
    where it is unknown.
    """
    seen = list(filter(None, map(_seen_mhz, facts)))
    if not seen:
        return ""
    text = f"The SM clock was at {_range(min(low for low, _ in seen), max(high for _, high in seen))} MHz. "
    capped = sum(map(_was_capped, facts))
    if not capped:
        return text
    return (
        f"{text}A power cap was on during {capped} of {len(facts)} cases: it is how a large GPU runs large "
        "products, and drops no samples. "
    )


def sustained(facts: Mapping) -> str | None:
    """A case's time under a load that lasts, with the clock and the power at its end;
    None where it has none.
    """
    measured = facts.get("sustained")
    if not measured:
        return None
    at = [f"{measured['sm_mhz']} MHz"] if measured["sm_mhz"] else []
    at += [f"{measured['power_w']:.0f} W"] if measured["power_w"] else []
    return " at ".join(
        [units.duration(measured["median_s"]), *filter(None, [" and ".join(at)])]
    )


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _seen_mhz(facts: Mapping) -> Sequence[int] | None:
    return _after(facts).get("sm_mhz_seen")


def _was_capped(facts: Mapping) -> bool:
    """Runs of before say only whether a power cap was on when the problem had ended."""
    after = _after(facts)
    return bool(after.get("power_cap_seen")) or _POWER_CAP in (
        after.get("throttled") or ()
    )


def _after(facts: Mapping) -> Mapping:
    """The machine's state when the case's problem had ended; {} on a CPU and where it
    is unknown.
    """
    return (facts.get("state") or {}).get("after") or {}
