"""How many mutants of the kernels were noticed, by kind; and the committed file that
keeps this, which grows by one subject at a time.

Each part of the file is one subject, but for the first, which sums up subjects that
were executed together: none of them can be taken out of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from batchline import places
from batchline.bench.errors import UsageError
from batchline.bench.measure.emulator.mutants import (
    BROKEN,
    MISSED,
    NOTICED,
    REDUNDANT,
    Judged,
)
from batchline.bench.measure.emulator.subjects import Subject
from batchline.bench.store import files

PINNED = places.BASELINES / "mutants.json"
_MOST = "most of a kind and change in a kernel"
_STATUSES = (NOTICED, REDUNDANT, MISSED, BROKEN)


@dataclass(frozen=True)
class Share:
    """Of the mutants of a kind: how many were noticed, were redundant, were missed, and
    on how many the emulator failed.
    """

    kind: str
    noticed: int
    redundant: int
    missed: int
    broken: int = 0

    @property
    def share(self) -> float | None:
        """Noticed, of those that change behaviour; None if none does."""
        changing = self.noticed + self.missed
        return self.noticed / changing if changing else None


@dataclass(frozen=True)
class Part:
    """What came of all mutants of some subjects, by their names.

    `kinds` has for each kind the numbers of a Share, `redundant` how many of a kind
    have changed nothing for a reason ("mask: never executed"), `missed` a line each.
    """

    subjects: tuple[str, ...]
    kinds: Mapping[str, Sequence[int]]
    redundant: Mapping[str, int]
    missed: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The parts, and how many mutants of a kind and change were executed of each kernel
    at most; None for all.
    """

    most: int | None
    parts: tuple[Part, ...] = ()

    @property
    def subjects(self) -> frozenset[str]:
        return frozenset(name for part in self.parts for name in part.subjects)

    @property
    def shares(self) -> list[Share]:
        """One for each kind that there is, by name."""
        kinds = sorted({kind for part in self.parts for kind in part.kinds})
        return [
            Share(kind, *map(sum, zip(*_counts_of(kind, self.parts)))) for kind in kinds
        ]

    @property
    def redundant(self) -> dict[str, int]:
        """How many mutants of a kind have changed nothing, by kind and reason."""
        counted = sum((Counter(part.redundant) for part in self.parts), Counter())
        return dict(sorted(counted.items()))

    @property
    def missed(self) -> list[str]:
        """A line for each mutant that was missed."""
        return [line for part in self.parts for line in part.missed]

    def without(self, subject: Subject) -> Table:
        """The table without what is kept of the subject's kernel, on any probe.

        Raises:
            UsageError: if the subject was executed together with others.
        """
        name = str(subject)
        if any(name in one.subjects and len(one.subjects) > 1 for one in self.parts):
            raise UsageError(
                f"{name} is counted together with others in {PINNED.name}, and can't be "
                "told apart from them: remove the file to execute all kernels anew"
            )
        others = [
            one
            for one in self.parts
            if [*map(_kernel, one.subjects)] != [_kernel(name)]
        ]
        return Table(self.most, tuple(others))


def _kernel(subject: str) -> tuple[str, str]:
    """The variant and the architecture of a subject's name."""
    words = subject.split(" ")
    return words[0], words[-1]


def _counts_of(kind: str, parts: Iterable[Part]) -> list[Sequence[int]]:
    return [part.kinds[kind] for part in parts if kind in part.kinds]


def part_of(subject: Subject, judged: Iterable[Judged]) -> Part:
    """What there is to keep of what came of all mutants of a subject."""
    judged = list(judged)
    counted = Counter((one.mutant.kind, one.status) for one in judged)
    reasons = Counter(
        f"{one.mutant.kind}: {one.by}" for one in judged if one.status == REDUNDANT
    )
    missed = (f"{one.mutant}: {one.by}" for one in judged if one.status == MISSED)
    return Part(
        (str(subject),),
        {
            kind: [counted[kind, status] for status in _STATUSES]
            for kind in sorted({one.mutant.kind for one in judged})
        },
        dict(sorted(reasons.items())),
        tuple(sorted(f"{subject}: {line}" for line in missed)),
    )


def load(most: int | None) -> Table:
    """The table that is kept, of at most so many mutants of a kind; an empty one where
    there is no file.

    Raises:
        UsageError: if the file is damaged, or has another number of mutants.
    """
    if not PINNED.exists():
        return Table(most)
    table = read()
    if table.most != most:
        has = "all" if table.most is None else f"at most {table.most}"
        give = "--mutants" if table.most is None else f"--mutants {table.most}"
        raise UsageError(
            f"{PINNED.name} has {has} mutants of a kind and change: give {give}, or "
            "remove the file to execute all kernels anew"
        )
    return table


def read() -> Table:
    """The table that is kept.

    Raises:
        OSError: if there is no file.
        DamagedFile: if it can't be read.
    """
    document = files.read_json(PINNED)
    with files.blamed_on(PINNED):
        return Table(document[_MOST], tuple(map(_part, document["parts"])))


def _part(data: Mapping) -> Part:
    return Part(
        tuple(data["subjects"]),
        data["kinds"],
        data["redundant"],
        tuple(data["missed"]),
    )


def add(subject: Subject, judged: Iterable[Judged], most: int | None) -> None:
    """Keep what came of all mutants of a subject, in the place of what was kept of it.

    Raises:
        UsageError: as `load` and as `Table.without`.
        OSError: if the file can't be written; what was there before is still there.
    """
    parts = load(most).without(subject).parts
    _save(Table(most, (*parts, part_of(subject, judged))))


def _save(table: Table) -> None:
    """Write the file, a part a line."""
    parts = ",\n".join(
        json.dumps(asdict(part), ensure_ascii=False) for part in table.parts
    )
    PINNED.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(
        PINNED, f'{{"{_MOST}": {json.dumps(table.most)}, "parts": [\n{parts}\n]}}\n'
    )
