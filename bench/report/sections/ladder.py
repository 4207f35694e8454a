"""The ladder of an op: each rung's idea, what it gained over the rung below, and what
the compilers made of it; and what they made of every GPU variant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.report.document import (
    FILES,
    Details,
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
from batchline.bench.stats.roofline import occupancy
from batchline.bench.statuses import MEASURED, UNSUPPORTED
from batchline.bench.store.records import EmulatedLaunch, EmulatedVariant, Run
from batchline.bench.verdicts import ranking
from batchline.bench.verdicts.compiled_changes import why_no_code, widths
from batchline.bench.verdicts.predicted import format_predictions, predictions
from batchline.bench.verdicts.ranking import Gain, Rung
from batchline.kernels.architectures import WITHOUT_GPU

_EXPLAINED = (
    "Each rung changes one idea of the rung that it is set in under. Gains are geometric "
    "means, then the least and the largest, over the cases that both were measured on by the clock that ranks; "
    "\"PyTorch's fastest\" is chosen anew for each case. Compiled facts are those of a rung's example. "
    "In emulation the compiled code was executed without a GPU: verdicts on small inputs, counts on the "
    "example with fewer samples. Predicted from counts is the most of the ceiling that they leave on a GPU, by its "
    "datasheet: no time was taken (what all this is: reports/methodology/emulation.md)."
)
_OWN_BOUND = " (checked against an error bound of its own)"
_SOURCES = ("tuned", "tuned nearby", "rule")


def section(run: Run, findings: Findings, op: str) -> Section:
    """The ladder of one op, and where its configurations came from."""
    return Section(
        "",
        f"The ladder of {op}",
        (
            Only(
                FILES,
                (
                    Text(_EXPLAINED),
                    rungs(run, findings, op),
                    *configurations(run, op),
                ),
            ),
            Only(Place.TERMINAL, (rungs(run, findings, op, compiled=False),)),
        ),
    )


def rungs(run: Run, findings: Findings, op: str, compiled: bool = True) -> Table:
    """Every variant of the op in the run, from the lowest rung up; `compiled`: with its
    example's compiled facts.
    """
    columns = ["rung", "idea", "over the rung below", "over PyTorch's fastest"]
    added = [("compiled", _compiled)] if compiled else []
    if compiled and run.emulated.variants:
        added += [("in emulation", _emulated), ("predicted from counts", _predicted)]
    rows = []
    for rung in findings.ladders[op]:
        facts = run.variants[rung.variant]
        own = _OWN_BOUND if facts.own_tolerance else ""
        row = [
            f"{'· ' * rung.height}{rung.variant.partition('/')[2]}",
            facts.idea + own + _gives(run, op, facts.gives) + _peer(run, facts.backend),
            _gain(rung.over_rung_below),
            _gain(rung.over_opponent) or _why_no_gain(run, rung),
        ]
        row += [facts_of(run, rung.variant) for _, facts_of in added]
        rows.append(row)
    return table([*columns, *(name for name, _ in added)], rows)


def configurations(run: Run, op: str) -> list[Part]:
    """Where the configurations of the op's tunable variants came from; nothing where
    it has none that was measured.
    """
    chosen: dict[str, Counter] = {}
    for record in run.records:
        if record.op == op and record.facts.get("config_source") in _SOURCES:
            chosen.setdefault(record.variant, Counter())[
                record.facts["config_source"]
            ] += 1
    if not chosen:
        return []
    tuning = run.ops[op].tuning
    none = (
        f"`{tuning.file}` can't be read ({tuning.why_not})"
        if tuning.why_not
        else f"There is no `{tuning.file}`"
    )
    origin = (
        f"Configurations were tuned on this device: `{tuning.file}`, {tuning.measured}, in "
        f"{tuning.seconds:.0f} s, none of them in a sample here."
        if tuning.measured
        else f"{none}: every configuration is its rule's. `batchline tune` measures and writes it."
    )
    rows = (
        [variant, *(str(counts[source]) for source in _SOURCES)]
        for variant, counts in chosen.items()
    )
    return [Text(origin), table(["variant", *_SOURCES], rows)]


def _gives(run: Run, op: str, count: int | None) -> str:
    """ " (gives ḡ, n only)" of a variant that gives the first `count` of the op's
    outputs, or nothing.
    """
    if count is None:
        return ""
    outputs = re.findall(r"(\w+)\[", run.ops[op].signature.partition("→")[2])
    return f" (gives {', '.join(outputs[:count])} only)"


def _peer(run: Run, backend: str) -> str:
    """ " (helion 1.5.1, BSD-3-Clause)" of another library's way, or nothing."""
    named = run.machine.get("peers", {}).get(backend)
    return f" ({named})" if named else ""


def _why_no_gain(run: Run, rung: Rung) -> str:
    """What became of a variant that has no gain: "wrong", "not ranked", "not timed
    here", "executed in emulation", "compiled, not yet run".
    """
    if not run.machine.get("gpu") and any(
        row["variant"] == rung.variant and not why_no_code(row)
        for row in run.compiled.kernels
    ):
        return _without_gpu(run, rung.variant)
    statuses = unique(
        (
            "not ranked"
            if record.status == MEASURED and ranking.why_unranked(record)
            else record.status
        )
        for record in run.records
        if f"{record.op}/{record.variant}" == rung.variant
    )
    return ", ".join(
        status for status in statuses if status != UNSUPPORTED or len(statuses) == 1
    )


def _without_gpu(run: Run, variant: str) -> str:
    """How far a GPU variant got where there is no GPU."""
    done = [one for one in run.emulated.variants if one.variant == variant]
    if any(one.wrong for one in done):
        return "wrong in emulation"
    return "executed in emulation" if done else "compiled, not yet run"


def _emulated(run: Run, variant: str) -> str:
    """What a variant's compiled code did in emulation: the verdicts of all dtypes, and
    the counts of its example in the first one, for the machine's architecture or sm_90.
    """
    done = [one for one in run.emulated.variants if one.variant == variant]
    if not done:
        return ""
    right = sum(len(one.right) for one in done)
    wrong = sum(len(one.wrong) for one in done)
    verdict = f"right on {right} probes" + (f", WRONG on {wrong}" if wrong else "")
    counted = [
        one
        for one in done[0].launches
        if one.architecture == _architecture_of(run) and one.instructions
    ]
    if not counted:
        return verdict
    first = counted[0]
    place = f"sm_{first.architecture} {done[0].dtype} B{first.batch}"
    return f"{verdict}; {place}: " + "; ".join(map(format_counts, counted))


def _predicted(run: Run, variant: str) -> str:
    """The share of the ceiling that it can reach at most: on the machine's GPU if the
    datasheets have it, with the share that was measured; or else on each of theirs. In
    the first dtype that was measured, or the first.
    """
    done = [one for one in run.emulated.variants if one.variant == variant]
    name = run.machine.get("device_name") if run.machine.get("gpu") else None
    told = [
        (predictions(one.calls, one.dtype, name), _measured_s(run, one)) for one in done
    ]
    if not told:
        return ""
    made, measured_s = next((one for one in told if one[1]), told[0])
    text = format_predictions(made)
    if measured_s and len(made) == 1:
        text += f"; measured {made[0].ceiling_s / measured_s:.0%}"
    return text


def _measured_s(run: Run, one: EmulatedVariant) -> float | None:
    """The median of the problem that is predicted, or None where it was not measured."""
    problems = {call.problem for call in one.calls}
    return next(
        (
            record.median_s
            for record in run.records
            if f"{record.op}/{record.variant}" == one.variant
            and record.dtype == one.dtype
            and f"{record.scenario}/B{record.batch}" in problems
            and record.status == MEASURED
        ),
        None,
    )


def format_counts(launch: EmulatedLaunch) -> str:
    """ "173,000 instructions, sectors 1.02x, banks 1.00x, each byte read 1.00x"."""
    shares = (
        ("sectors", launch.sectors, launch.sectors_needed),
        ("banks", launch.passes, launch.requests),
        ("each byte read", launch.read_bytes, launch.distinct_bytes),
    )
    told = [
        f"{name} {units.ratio(part / whole)}" for name, part, whole in shares if whole
    ]
    return ", ".join([f"{launch.instructions:,} instructions", *told])


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


def _compiled(run: Run, variant: str) -> str:
    """The facts of its example in the first dtype compiled, for the machine's
    architecture or sm_90.
    """
    architecture = _architecture_of(run)
    rows = [
        row
        for row in run.compiled.kernels
        if row["variant"] == variant and row["example"]
    ]
    return _first_dtype(
        [row for row in rows if row["architecture"] == architecture] or rows
    )


def _architecture_of(run: Run) -> int:
    """Of the machine's GPU; sm_90 where there is none."""
    gpu = run.machine.get("gpu")
    return int(gpu["compute_capability"].replace(".", "")) if gpu else WITHOUT_GPU


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
        map(format_compiled, same)
    )


def compiled(run: Run, findings: Findings) -> Section | None:
    """What the compilers made of the GPU variants; None where nothing was compiled and
    nothing kept it from being so.
    """
    parts = tuple(_compiled_parts(run))
    title = "What the compilers made of the GPU variants"
    return Section("compiled", title, parts) if parts else None


def _compiled_parts(run: Run) -> Iterator[Part]:
    on_examples = examples(run)
    if on_examples:
        not_run = "" if run.machine.get("gpu") else _not_run(run)
        yield Text(
            f"Compiled for these architectures{not_run}. Registers and stack (where "
            "spills go) are per thread, shared memory per block; a variant that launches "
            "two kernels has two entries."
        )
        yield Text(summarize_compiled(run))
        yield on_examples
    rules = rule_configurations(run)
    if rules:
        yield Details(
            "Every configuration that the rules give on the scenarios", (rules,)
        )
    if run.compiled.incomplete:
        yield Text(f"GPU variants not compiled to the end: {run.compiled.incomplete}.")
    wrong = [
        f"{one.variant} {one.dtype} on {probe}: {why}"
        for one in run.emulated.variants
        for probe, why in one.wrong.items()
    ]
    if wrong:
        yield Text(f"Wrong in emulation: {'; '.join(wrong)}.")
    if run.emulated.incomplete:
        yield Text(f"Not executed in emulation: {run.emulated.incomplete}.")


def _not_run(run: Run) -> str:
    """How far they got where there is no GPU."""
    if not run.emulated.variants:
        return ", not yet run: there was no GPU here"
    return (
        f" and executed in emulation ({len(run.emulated.variants)} variants and dtypes), "
        "not yet run: there was no GPU here"
    )


def examples(run: Run) -> Table | None:
    """Each variant's kernels on its example, architectures across; None if nothing was
    compiled.
    """
    entries = [entry for entry in run.compiled.kernels if entry["example"]]
    if not entries:
        return None
    architectures = unique(entry["architecture"] for entry in entries)
    cells: dict[tuple[str, str, str], dict[int, list[str]]] = {}
    for entry in entries:
        row = cells.setdefault(
            (
                entry["variant"],
                entry["dtype"],
                f"{entry['scenario']}/B{entry['batch']}",
            ),
            {},
        )
        row.setdefault(entry["architecture"], []).append(format_compiled(entry))
    return table(
        ["variant", "dtype", "on", *(f"sm_{number}" for number in architectures)],
        (
            [*key, *("; ".join(row.get(number, ())) for number in architectures)]
            for key, row in cells.items()
        ),
    )


def rule_configurations(run: Run) -> Table | None:
    """Every configuration that the rules give on the op's scenarios, on the
    architecture for which all were compiled.

    Those of equal kernel and constants stand in one row, the worst of each figure for
    it.
    """
    rows: dict[tuple[str, str, str, str], list[Mapping]] = {}
    for entry in run.compiled.kernels:
        if not why_no_code(entry) and entry["architecture"] == _all_compiled_for(run):
            key = entry["variant"], entry["dtype"], entry["kernel"], entry["config"]
            rows.setdefault(key, []).append(entry)
    if not rows:
        return None
    return table(
        ["variant", "dtype", "kernel and configuration", "scenarios", "facts"],
        (
            [
                variant,
                dtype,
                f"{kernel} {config}",
                ", ".join(unique(entry["scenario"] for entry in entries)),
                format_compiled(
                    max(
                        entries,
                        key=lambda entry: (
                            entry["spills"],
                            entry["stack_bytes"],
                            entry["registers"],
                        ),
                    )
                ),
            ]
            for (variant, dtype, kernel, config), entries in rows.items()
        ),
    )


def _all_compiled_for(run: Run) -> int | None:
    return next(
        (
            entry["architecture"]
            for entry in run.compiled.kernels
            if not entry["example"]
        ),
        None,
    )


def summarize_compiled(run: Run) -> str:
    """Whether a configuration spills, and where warp specialisation engaged, in a
    sentence or two.
    """
    compiled = [entry for entry in run.compiled.kernels if not why_no_code(entry)]
    spilling = unique(
        f"{entry['variant']} {entry['dtype']} on sm_{entry['architecture']} ({entry['scenario']})"
        for entry in compiled
        if entry["spills"] or entry["stack_bytes"]
    )
    engaged: dict[str, list[int]] = {}
    for entry in compiled:
        if entry["warp_specialized"]:
            engaged.setdefault(entry["variant"], []).append(entry["architecture"])
    sentences = [
        f"Of {len(compiled)} kernels compiled, {len(spilling) or 'none'} use{'' if len(spilling) > 1 else 's'} "
        f"the stack{': ' + ', '.join(spilling) if spilling else ''}."
    ]
    sentences += [
        f"Warp specialisation engaged in {variant} for {', '.join(f'sm_{number}' for number in unique(architectures))}."
        for variant, architectures in engaged.items()
    ]
    return " ".join(sentences)


def format_compiled(entry: Mapping) -> str:
    """ "110 regs, 25% occupancy, 96.0 KiB shared, wgmma x4, loads 24 x 16 B"."""
    if why := why_no_code(entry):
        return why
    occupied = occupancy(
        entry["architecture"],
        entry["threads"],
        entry["registers"],
        entry["shared_bytes"],
    )
    facts = [
        f"{entry['registers']} regs",
        f"{occupied.share:.0%} occupancy (by {occupied.limited_by})",
    ]
    if entry["stack_bytes"] or entry["spills"]:
        facts.append(
            f"{entry['stack_bytes']} B stack, {entry['spills']} spill instructions"
        )
    if entry["shared_bytes"]:
        facts.append(f"{units.size(entry['shared_bytes'])} shared")
    if entry["matrix_instruction"]:
        facts.append(
            f"{entry['matrix_instruction'].partition('.')[0]} x{entry['matrix']}"
        )
    if entry["warp_specialized"]:
        facts.append("warp-specialised")
    facts += [
        f"{word} {widths(entry[word])}" for word in ("loads", "stores") if entry[word]
    ]
    return ", ".join(facts)
