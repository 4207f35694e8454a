"""`bench codegen`: compile every GPU variant with no GPU, and hold the result against what is pinned."""
from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from bench.verdicts.occupancy import occupancy

CLEAN, MOVED, NOT_COMPILED = 0, 1, 3
_SAME = ("variant", "dtype", "scenario", "batch", "architecture", "kernel", "config")  # what makes a row the same row


def codegen(pin: bool, everything: bool) -> int:
    """Compile what has changed since it was pinned, or everything; print what moved, or pin it; the exit code."""
    from bench.measure import static_facts

    started = time.monotonic()
    wanted, pins = static_facts.jobs(), static_facts.pinned()
    changed = [job for job in wanted if everything or not static_facts.is_current(job, pins)]
    # Before they are compiled: whoever edits meanwhile has not compiled what they then have.
    sources = {job: static_facts.fingerprint(static_facts.variant_of(job[0])) for job in changed}
    fresh, incomplete = static_facts.compile_in_own_processes(changed) if changed else ({}, None)
    compiled = (f"{sum(map(len, fresh.values()))} kernels of {len(changed)} variants and dtypes compiled in "
                f"{time.monotonic() - started:.0f} s, {len(wanted) - len(changed)} more are as they were pinned")
    if incomplete:
        print(f"not compiled to the end: {incomplete}")
        return NOT_COMPILED
    if pin:
        kept = {job: pins[job] for job in wanted if job in pins}
        new = {job: {"sources": sources[job], "kernels": rows} for job, rows in fresh.items()}
        print(f"{compiled}; pinned in {static_facts.pin(kept | new)}")
        return CLEAN
    if not pins:
        print(f"nothing is pinned for {_words(static_facts.toolchain())}: `make codegen PIN=1` does it")
        return NOT_COMPILED
    before = [row for job, entry in pins.items() if job in changed or job not in wanted for row in entry["kernels"]]
    moved = list(differences(before, [row for rows in fresh.values() for row in rows]))
    print("\n".join([*moved, f"{compiled}; {len(moved)} differ from the pins"]))
    if changed:
        print("where that is meant: `make codegen PIN=1`, and commit the file")
    return MOVED if moved else CLEAN


def differences(before: Sequence[Mapping], after: Sequence[Mapping]) -> Iterator[str]:
    """A line for each kernel that is new, gone, or changed, with what changed of it. Nothing for equal ones."""
    old, new = ({tuple(row.get(name) for name in _SAME): row for row in rows} for rows in (before, after))
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if was != now:
            variant, dtype, scenario, batch, architecture, kernel, config = key
            name = f"{variant} {dtype} {scenario}/B{batch} sm_{architecture} {kernel} ({config})"
            if was is None or now is None:
                yield f"{name}: {'new' if was is None else 'gone'}"
            else:
                changed = [f"{field} {was.get(field)} → {value}" for field, value in now.items()
                           if was.get(field) != value]
                yield f"{name}: {', '.join([*changed, *_consequence(was, now)])}"


def _consequence(was: Mapping, now: Mapping) -> list[str]:
    shares = []
    for row in (was, now):
        if row.get("registers") is None:
            return []
        shares.append(occupancy(row["architecture"], row["threads"], row["registers"], row["shared_bytes"]).share)
    return [f"occupancy {shares[0]:.0%} → {shares[1]:.0%}"] if shares[0] != shares[1] else []


def _words(toolchain: Mapping) -> str:
    return ", ".join(f"{name} {version}" for name, version in toolchain.items())
