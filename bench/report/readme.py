"""The report of a run: README.md beside its run.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from batchline.bench import units
from batchline.bench.store.records import Record, Run
from batchline.bench.report import (
    audit,
    crossover,
    crossovers,
    escaping,
    gpu_clocks,
    invariance,
    ladder,
    latency_law,
    limits,
    plots,
    static,
    tables,
    training,
)

FILE_NAME = "README.md"
LADDER = (
    "Each rung changes one idea of the rung that it is set in under. Gains are geometric "
    "means, then the least and the largest, over the cases that both were measured on by the clock that ranks; "
    "\"PyTorch's fastest\" is chosen anew for each case. Compiled facts are those of a rung's example."
)


def draw(run: Run, folder: Path) -> tuple[dict, str | None]:
    """Draw the plots into `folder`; returns their names without the ending, and None or
    why there can be none here.
    """
    if missing := plots.why_no_plots():
        return {}, missing
    figures = plots.draw(run, folder)
    if run.about.get("noise"):
        figures |= training.draw(
            run.about["noise"], run.about["sweep"], run.machine, folder
        )
    return figures, None


def write(run: Run, folder: Path, figures: Mapping, missing: str | None) -> None:
    """Write README.md into `folder`, with these plots, or with why there are none."""
    (folder / FILE_NAME).write_text(
        "\n\n".join(markdown(run, figures, missing)) + "\n", encoding="utf-8"
    )


def summary(run: Run) -> str:
    """The run in a line: how many cases ended how, on what."""
    counts = Counter(record.status for record in run.records)
    words = ", ".join(f"{count} {status}" for status, count in counts.items())
    partial = "PARTIAL (stopped before the end): " if run.about["partial"] else ""
    along = _along(run.about.get("along", ()))  # runs of before have none
    return (
        f"{partial}{len(run.records)} cases: {words}{along}; profile {run.about['profile']} on "
        f"{run.machine['device_name']}"
    )


def _along(case_ids: Sequence[str]) -> str:
    """What was measured along with the cases that were asked for, because those are
    compared with it.
    """
    variants = dict.fromkeys("/".join(case_id.split("/")[:2]) for case_id in case_ids)
    return (
        f" ({len(case_ids)} of them along, to compare with: {', '.join(variants)})"
        if variants
        else ""
    )


def markdown(run: Run, figures: Mapping, missing: str | None) -> Iterator[str]:
    """The report's paragraphs: `figures` are the plots' names by group, `missing` says
    why there are none.
    """
    run = escaping.without_elements(run)
    about = run.about
    yield f"# Batchline: {about['profile']} run on {run.machine['device_name']}, {about['started'][:10]}"
    if about["partial"]:
        yield "> **Partial.** The run was stopped before its end; what it had not reached is listed as such."
    selection = f", cases matching `{about['selection']}`" if about["selection"] else ""
    yield f"{summary(run)}{selection}. Measured in {about['seconds']:.0f} s{_forecast(run)}, begun {about['started']}."
    yield tables.machine(run, tables.MARKDOWN)
    yield (
        "A cell is the median latency · the speed-up over the fastest of PyTorch's variants at that batch · the "
        "peak memory above the inputs (outputs and workspace) · the share reached of the ceiling that binds it, and "
        "which that is (launch, cache, memory or compute). The fastest of those ranked in a row is bold; † marks "
        "the others. Every variant passed its check against fp64 before it was timed, and its output was checked "
        "again behind the timing. "
        f"{how_measured(run)} reports/methodology/ says what each figure means."
    )
    choices = crossovers.table(run, tables.MARKDOWN)
    if choices:
        yield f"## Which variant at which batch size\n\n**{crossovers.answer(run)}** {crossovers.NOTE}"
        yield choices
    yield f"## What this machine can do\n\n{limits.ceilings(run, tables.MARKDOWN)}"
    last_op = None
    for (op, scenario, dtype), records in run.groups().items():
        if op != last_op:
            yield f"## {op}\n\n`{about['signatures'][op]}`"
            yield f"### The ladder of {op}\n\n{LADDER}"
            yield ladder.table(run, op, tables.MARKDOWN)
            configurations = ladder.configurations(run, op, tables.MARKDOWN)
            if configurations:
                yield configurations
            last_op = op
        table = tables.comparison(records, tables.MARKDOWN, about["ceilings"])
        if not table:
            continue
        yield f"### {scenario} · {dtype}\n\n{about['scenarios'][op][scenario]}"
        yield table
        if (op, scenario, dtype) in figures:
            name = figures[op, scenario, dtype]
            yield (
                f"![latency, speed-up and memory of {op} over the batch, {scenario}, {dtype}]({name}.png)\n\n"
                f"[as SVG]({name}.svg)"
            )
        clocks = tables.clocks(records, tables.MARKDOWN, about["ceilings"])
        if clocks:
            yield f"<details><summary>every clock</summary>\n\n{clocks}\n\n</details>"
    if missing:
        yield f"No plots: {missing}."
    crossings = crossover.table(run, tables.MARKDOWN)
    if crossings:
        yield f"## Ghost norms or fused?\n\n{crossover.NOTE}\n\n{crossings}"
    numerics = audit.section(run, tables.MARKDOWN)
    if numerics:
        yield f"## Numerics of the statistics\n\n{numerics}"
    invariant = invariance.section(run, tables.MARKDOWN)
    if invariant:
        yield f"## Batch invariance\n\n{invariant}"
    if about.get("noise"):
        yield from training.markdown(
            about["noise"], about["sweep"], run.machine, figures
        )
    latencies = latency_law.table(run, tables.MARKDOWN)
    if latencies:
        yield f"## Latency over the batch\n\n{latencies}"
    law = limits.memory_law(run, tables.MARKDOWN)
    if law:
        yield f"## Memory over the batch\n\n{law}"
    rest = tables.not_measured(run, tables.MARKDOWN)
    if rest:
        yield f"## Without a time\n\n{rest}"
    if about["left_out"]:
        yield f"## Larger than the profile takes\n\n{left_out(run)}"
    compiled = static.examples(run, tables.MARKDOWN)
    if compiled:
        not_run = (
            "" if run.machine.get("gpu") else ", not yet run: there was no GPU here"
        )
        yield (
            "## What the compilers made of the GPU variants\n\n"
            f"Compiled for these architectures{not_run}. "
            "Registers and stack (where spills go) are per thread, shared memory per block; a variant that launches "
            "two kernels has two entries."
        )
        yield static.verdict(run)
        yield compiled
        rules = static.configurations(run, tables.MARKDOWN)
        if rules:
            yield (
                f"<details><summary>every configuration that the rules give on the scenarios</summary>\n\n"
                f"{rules}\n\n</details>"
            )
    if about["not_compiled"]:
        yield f"GPU variants not compiled to the end: {about['not_compiled']}."


def how_measured(run: Run) -> str:
    timed = [record for record in run.records if record.facts]
    if not timed:
        return "Nothing was timed."
    facts = [record.facts for record in timed]
    clocks = tables.unique(fact["clock"] for fact in facts)
    methods = tables.unique(fact["memory_method"] for fact in facts)
    effort = run.about["effort"]
    precise = sum(fact["precision"] <= effort["precision"] for fact in facts) / len(
        facts
    )
    dropped = sum(fact["discarded"] for fact in facts)
    return (
        f"Clock: {', '.join(clocks)}; variants of a problem were timed in turns. A median is known to "
        f"±{effort['precision']:.1%} in {precise:.0%} of the cases, and {effort['seconds']:g} s of samples were "
        f"the most that one got; {dropped} samples were dropped because the machine was throttled. "
        f"{_load(facts)}{gpu_clocks.of_run(facts)}Memory: {', '.join(methods)}. {_accuracy(timed)}"
        f"{_fences(facts, run.about.get('seconds'))}{_confirmed(facts)}"
    )


def _forecast(run: Run) -> str:
    parts = run.about.get("forecast")  # runs of before have none
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
    words = (
        [f"The worst element of any result was at {max(by_op):.2g} of its tolerance."]
        if by_op
        else []
    )
    if own:
        worst = max(record.facts["error_of_tolerance"] for record in own)
        names = tables.unique(f"{record.op}/{record.variant}" for record in own)
        words.append(
            f"Held to error bounds of their own, and at {worst:.2g} of those: {', '.join(names)}."
        )
    return " ".join(words)


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


def left_out(run: Run) -> str:
    batches: dict[str, list[int]] = {}
    for op, scenario, dtype, batch in run.about["left_out"]:
        batches.setdefault(f"`{op}/{scenario}/{dtype}`", []).append(batch)
    limits = run.about["limits"]
    return (
        f"Over {limits['flops']:.3g} FLOP or {units.size(limits['bytes'])} a call:\n\n"
        + "\n".join(
            f"- {problem}: B = {', '.join(map(str, sizes))}"
            for problem, sizes in batches.items()
        )
    )
