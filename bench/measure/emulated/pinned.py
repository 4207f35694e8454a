"""The pinned verdicts and counts of the emulator: one committed file a toolchain, with a
digest, beside the compiled facts; what of it came from other sources than there are
now, and executing that anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from batchline.bench.declared import Declared
from batchline.bench.measure.checking import check
from batchline.bench.measure.compiled import compiler, pins, static_facts
from batchline.bench.measure.compiled.compile_pool import Pool
from batchline.bench.measure.compiled.pins import Job
from batchline.bench.measure.emulated import counted, executed, filling
from batchline.bench.measure.emulated.executed import Executed
from batchline.bench.measure.emulator import subjects
from batchline.bench.measure.emulator.subjects import architectures_of
from batchline.bench.measure.reading import sources
from batchline.bench.stats.prediction import CountedCall, LaunchCounts
from batchline.bench.store import files
from batchline.bench.store.files import SealBroken

FORMAT = 2
SCHEDULES = ("late", "shuffled")  # under which a subject has its verdict
MOST_AGAIN = 2**22  # instructions: of one that has more, under the first alone
_PARTS = ("toolchain", "entries")
_ROWS = ("launches", "calls")  # of an entry: a line each
# Of the emulator's files, those that decide no verdict and no count.
_APART = ("mutants.py", "on_stand_in.py")


@dataclass(frozen=True)
class Entry:
    """What is known of a (variant, dtype).

    `sources` and `emulator` are fingerprints of what it came from. `right` are the
    names of the subjects that are, "ragged sm_90", and `wrong` those of the others,
    each with a line. `launches` are rows as bench.measure.emulated.counted makes them,
    `calls` as bench.measure.emulated.filling does.
    """

    sources: str
    emulator: str
    right: tuple[str, ...]
    wrong: Mapping[str, str]
    launches: tuple[Mapping, ...]
    calls: tuple[CountedCall, ...] = ()


def path() -> Path:
    """Where this toolchain's verdicts and counts are pinned."""
    return pins.folder() / pins.path().name.replace("codegen-", "emulated-", 1)


def load() -> dict[Job, Entry]:
    """What is pinned for this toolchain; {} where nothing is.

    Raises:
        SealBroken: if the file is damaged, was edited by hand, or is of another format
        or toolchain.
    """
    document = files.load_sealed(path(), FORMAT, _again(), _PARTS)
    if document is None:
        return {}
    if document["toolchain"] != pins.toolchain():
        differing = files.differing(document["toolchain"], pins.toolchain())
        raise SealBroken(
            f"{path().name} is of another toolchain ({differing}): {_again()}"
        )
    return {
        job: _entry(job, data)
        for name, data in document["entries"].items()
        for job in [tuple(name.rsplit("/", 1))]
    }


def _entry(job: Job, data: Mapping) -> Entry:
    return Entry(
        data["sources"],
        data["emulator"],
        tuple(
            _subject_name(probe, architecture)
            for architecture, probes in data["right"].items()
            for probe in probes.split()
        ),
        data["wrong"],
        tuple(dict(zip(("variant", "dtype"), job)) | row for row in data["launches"]),
        tuple(map(_call, data["calls"])),
    )


def _call(data: Mapping) -> CountedCall:
    launches = tuple(LaunchCounts(**launch) for launch in data["launches"])
    return CountedCall(**{**data, "launches": launches})


def save(entries: Mapping[Job, Entry]) -> Path:
    """Write the toolchain's file, a launch a line."""
    named = {"/".join(job): _data(entry) for job, entry in sorted(entries.items())}
    lines = ",\n".join(
        f" {json.dumps(name)}: {_lines(data)}" for name, data in named.items()
    )
    seal = files.digest(pins.toolchain(), named)
    path().parent.mkdir(parents=True, exist_ok=True)
    return files.write_whole(
        path(),
        f'{{"format": {FORMAT}, "digest": "{seal}",\n'
        f'"toolchain": {json.dumps(pins.toolchain())},\n"entries": {{\n{lines}\n}}}}\n',
    )


def _data(entry: Entry) -> dict:
    probes = defaultdict(list)
    for name in entry.right:
        probe, _, architecture = name.rpartition(" sm_")
        probes[architecture].append(probe)
    return {
        "sources": entry.sources,
        "emulator": entry.emulator,
        "right": {name: " ".join(some) for name, some in sorted(probes.items())},
        "wrong": dict(entry.wrong),
        "launches": [
            {
                name: value
                for name, value in row.items()
                if name not in ("variant", "dtype")
            }
            for row in entry.launches
        ],
        "calls": list(map(asdict, entry.calls)),
    }


def _lines(data: Mapping) -> str:
    head = json.dumps({name: data[name] for name in data if name not in _ROWS})
    rows = (f', "{name}": [\n  {_a_row_each(data[name])}]' for name in _ROWS)
    return f"{head[:-1]}{''.join(rows)}}}"


def _a_row_each(rows: Sequence[Mapping]) -> str:
    return ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in rows)


def why_none() -> str:
    """That no verdict and no count is pinned for this toolchain, in a line."""
    return f"no verdict and no count is pinned for this toolchain ({path().name}): {_again()}"


def _again() -> str:
    return f"{pins.command()} executes and pins everything anew"


@functools.cache
def emulator_fingerprint() -> str:
    """A hash of the emulator's own code, and of what judges its outputs; blind to
    comments.
    """
    package = Path(subjects.__file__).parent
    read = [
        *(one for one in sorted(package.glob("*.py")) if one.name not in _APART),
        Path(counted.__file__),
        Path(filling.__file__),
        Path(check.__file__),
    ]
    found = hashlib.sha256()
    for one in read:
        found.update(f"{one.name}\0{sources.read(one).code}\0".encode())
    return found.hexdigest()[:16]


def sources_fingerprint(variant_id: str) -> str:
    """A hash of the variant's sources and of what compiles it. How its machine code is
    read decides no verdict.
    """
    return static_facts.fingerprint(variant_id, (Path(compiler.__file__),))


def is_current(job: Job, known: Mapping[Job, Entry]) -> bool:
    """Whether what is pinned of a job came from the sources and the emulator that there
    are now.
    """
    entry = known.get(job)
    return (
        entry is not None
        and entry.emulator == emulator_fingerprint()
        and entry.sources == sources_fingerprint(job[0])
    )


def jobs(variants: Sequence[Declared]) -> list[Job]:
    """Every (variant, dtype) that can be executed here."""
    return [
        (variant.id, dtype)
        for variant in variants
        if variant.backend in subjects.BACKENDS
        and variant.broken is None
        and executed.why_not_executed(variant.backend) is None
        for dtype in variant.dtypes or subjects.ALL_DTYPES
    ]


def execute(
    pool: Pool,
    wanted: Sequence[Job],
    declared: Sequence[Declared],
    tell: Callable[[int, int], None] = lambda done, count: None,
) -> tuple[dict[Job, Entry], list[str]]:
    """What there is to pin of the jobs of `declared` variants, executed now; and a line
    for what did not come to its end, in which case the job has no entry.

    `tell` is given how many pieces of work are over, and how many there are.
    """
    prints = {job: sources_fingerprint(job[0]) for job in wanted}
    variants = list(dict.fromkeys(variant for variant, _ in wanted))
    listed, broken = pool.each(
        executed.pinned_subjects_of, [(variant,) for variant in variants]
    )
    chosen = [
        one
        for some in listed.values()
        for one in some
        if (one.variant, one.dtype) in prints
    ]
    turns = executed.turns(chosen, SCHEDULES, most_again=MOST_AGAIN)
    counting = counted.every_job(wanted, declared)
    on = {one.id: architectures_of(one) for one in declared}
    count = len(turns) + 2 * len(counting)
    rows, lost = executed.execute_all(pool, turns, lambda done: tell(done, count))
    launches, missing = pool.each(
        counted.count_example,
        counting,
        tell=lambda done: tell(len(turns) + done, count),
    )
    calls, uncalled = pool.each(
        filling.count_filling,
        counting,
        tell=lambda done: tell(len(turns) + len(counting) + done, count),
    )
    problems = [*broken, *lost, *missing, *uncalled]
    by_job = defaultdict(list)
    for one in rows:
        by_job[one.subject.variant, one.subject.dtype].append(one)
    entries = {
        job: _made(
            prints[job],
            by_job[job],
            [
                row
                for architecture in on[job[0]]
                for row in launches[(*job, architecture)]
            ],
            [row for architecture in on[job[0]] for row in calls[(*job, architecture)]],
        )
        for job in wanted
        if all(
            (*job, architecture) in counts
            for counts in (launches, calls)
            for architecture in on[job[0]]
        )
        and not any(line.startswith(f"{job[0]} ") for line in problems)
    }
    return entries, problems


def _made(
    fingerprint: str,
    rows: Sequence[Executed],
    launches: Sequence[Mapping],
    calls: Sequence[CountedCall],
) -> Entry:
    names = {_name(one): one for one in rows}
    return Entry(
        fingerprint,
        emulator_fingerprint(),
        tuple(name for name, one in names.items() if one.is_right),
        {name: why(one) for name, one in names.items() if not one.is_right},
        tuple(launches),
        tuple(calls),
    )


def why(one: Executed) -> str:
    """What is wrong with a subject, in a line."""
    faults = [fault.text for fault in one.faults if fault.is_fault]
    return "; ".join(filter(None, [one.wrong, *faults]))


def _name(one: Executed) -> str:
    return _subject_name(one.subject.probe, one.subject.architecture)


def _subject_name(probe: str, architecture: int | str) -> str:
    return f"{probe} sm_{architecture}"
