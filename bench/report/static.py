"""What the compilers made of the GPU variants, as tables."""

from __future__ import annotations

from collections.abc import Mapping

from batchline.bench import units
from batchline.bench.store.records import Run
from batchline.bench.report.tables import Style, unique
from batchline.bench.verdicts.compiled_changes import why_no_code, widths
from batchline.bench.stats.occupancy import occupancy


def examples(run: Run, style: Style) -> str | None:
    """Each variant's kernels on its example, architectures across; None if nothing was
    compiled.
    """
    entries = [entry for entry in run.about["compiled"] if entry["example"]]
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
        row.setdefault(entry["architecture"], []).append(shown_facts(entry))
    return style.render(
        ["variant", "dtype", "on", *(f"sm_{number}" for number in architectures)],
        (
            [*key, *("; ".join(row.get(number, ())) for number in architectures)]
            for key, row in cells.items()
        ),
    )


def configurations(run: Run, style: Style) -> str | None:
    """Every configuration that the rules give on the op's scenarios, on the
    architecture for which all were compiled.

    Those of equal kernel and constants stand in one row, the worst of each figure for
    it.
    """
    rows: dict[tuple[str, str, str, str], list[Mapping]] = {}
    for entry in run.about["compiled"]:
        if not why_no_code(entry) and entry["architecture"] == _all_compiled_for(run):
            key = entry["variant"], entry["dtype"], entry["kernel"], entry["config"]
            rows.setdefault(key, []).append(entry)
    if not rows:
        return None
    return style.render(
        ["variant", "dtype", "kernel and configuration", "scenarios", "facts"],
        (
            [
                variant,
                dtype,
                f"{kernel} {config}",
                ", ".join(unique(entry["scenario"] for entry in entries)),
                shown_facts(
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
            for entry in run.about["compiled"]
            if not entry["example"]
        ),
        None,
    )


def verdict(run: Run) -> str:
    """Whether a configuration spills, and where warp specialisation engaged, in a
    sentence or two.
    """
    compiled = [entry for entry in run.about["compiled"] if not why_no_code(entry)]
    spilling = unique(
        f"{entry['variant']} {entry['dtype']} on sm_{entry['architecture']} ({entry['scenario']})"
        for entry in compiled
        if entry["spills"] or entry["stack_bytes"]
    )
    engaged: dict[str, list[int]] = {}
    for entry in compiled:
        if entry["warp_specialized"]:
            engaged.setdefault(entry["variant"], []).append(entry["architecture"])
    words = [
        f"Of {len(compiled)} kernels compiled, {len(spilling) or 'none'} use{'' if len(spilling) > 1 else 's'} "
        f"the stack{': ' + ', '.join(spilling) if spilling else ''}."
    ]
    words += [
        f"Warp specialisation engaged in {variant} for {', '.join(f'sm_{number}' for number in unique(found))}."
        for variant, found in engaged.items()
    ]
    return " ".join(words)


def shown_facts(entry: Mapping) -> str:
    """ "110 regs, 25% occupancy, 96.0 KiB shared, wgmma x4, loads 24 x 16 B"."""
    if why := why_no_code(entry):
        return why
    held = occupancy(
        entry["architecture"],
        entry["threads"],
        entry["registers"],
        entry["shared_bytes"],
    )
    facts = [
        f"{entry['registers']} regs",
        f"{held.share:.0%} occupancy (by {held.limited_by})",
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
