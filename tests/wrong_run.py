"""`python -m tests.wrong_run`: a smoke run with all wrong kernels dropped in, beside
two runs without them.

It prints what became of each wrong kernel, and how far the honest ones' medians moved:
between the two runs without the wrong kernels, and from the first of those to the run
with them. Most are wrong on some problems only, and honest products elsewhere: a time
is no fault, but one that beats the baseline by more than luck is. It exits with 1 if
there is one, if a kernel was not refused for what it does, or if an honest case has no
time beside them. It takes six to nine minutes.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from batchline.bench import units
from batchline.bench.running.after_cases import LUCK, winners
from batchline.bench.statuses import MEASURED
from batchline.bench.store import run_json
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import ranking
from tests import wrong_kernels
from tests.trees import REPOSITORY, copy_sources, drop_in

CHOSEN = (
    "tiny_16 or square_64 or square_128 or square_256 or attention_scores or layer_norm"
)
DEADLINE_S = 8
SHARES = (0.5, 0.9, 1.0)
_SHOWN = 12


def main() -> int:
    """Make the three runs, print both tables, and return the exit code."""
    names = [
        name
        for _, name, _ in pkgutil.iter_modules(wrong_kernels.__path__)
        if _is_wrong_here(name)
    ]
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            _run(Path(folder) / which, names if which == "wrong" else ())
            for which in ("one", "other", "wrong")
        ]
    won = {
        winner.record.variant
        for winner in winners(runs[-1].records, runs[-1].baselines)
        if winner.gain.log > LUCK
    }
    rows = [
        _row(
            name, [record for record in runs[-1].records if record.variant == name], won
        )
        for name in names
    ]
    print(
        tabulate(
            rows,
            ("wrong kernel", "its cases", "what was asked for", "is it so"),
            "github",
        )
    )
    honest = [
        {
            record.id: record
            for record in run.records
            if record.variant not in names and record.status == MEASURED
        }
        for run in runs
    ]
    print(
        f"\n{tabulate(_spreads(*honest), ('honest cases', 'moved', *SHARES), 'github')}"
    )
    print(
        f"\n{tabulate(_furthest(*honest), ('moved furthest', 'without them', 'again', 'beside them'), 'github')}"
    )
    lost = sorted(honest[0].keys() & honest[1].keys() - honest[2].keys())
    print(f"\nWithout a time beside the wrong kernels: {', '.join(lost) or 'none'}")
    believed = [row[0] for row in rows if row[-1] != "yes"]
    print(f"Not as it must be: {', '.join(believed) or 'none'}")
    return 1 if believed or lost else 0


def _is_wrong_here(name: str) -> bool:
    """Whether a kernel is wrong in what a smoke run times: not one that costs memory
    alone, or is wrong in fp16.
    """
    module = importlib.import_module(f"{wrong_kernels.__name__}.{name}")
    return (
        not hasattr(module, "KEEPS_BYTES")
        and getattr(module, "DTYPE", None) is not torch.float16
    )


def _run(root: Path, names: Sequence[str]) -> Run:
    """What a smoke run measures in a copy of the sources with these kernels dropped in."""
    copy_sources(root)
    shutil.copytree(
        REPOSITORY / "reports" / "baselines", root / "reports" / "baselines"
    )  # or all compiles here
    for name in names:
        drop_in(root, name)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "batchline",
            "run",
            "--profile",
            "smoke",
            "--device",
            "cpu",
            "-k",
            CHOSEN,
            "--deadline",
            str(DEADLINE_S),
            "--out",
            str(root / "runs"),
            "--history",
            str(root / "history"),
        ],
        cwd=root,
        stdout=sys.stderr,
    )
    (folder,) = (root / "runs").iterdir()
    return run_json.load(folder)


def _row(
    name: str, found: Sequence[Record], won: Container[str]
) -> tuple[str, str, str, str]:
    """The kernel, how its cases ended, what had to be, and whether it is so."""
    module = importlib.import_module(f"{wrong_kernels.__name__}.{name}")
    ended = ", ".join(
        f"{count} {status}"
        for status, count in Counter(record.status for record in found).items()
    )
    if words := getattr(module, "UNRANKED_FOR", None):
        return name, ended, words, _yes(found and not any(map(ranking.may_win, found)))
    told = any(re.search(module.REFUSED_FOR, record.reason) for record in found)
    return name, ended, module.REFUSED_FOR, _yes(told and name not in won)


def _yes(holds: object) -> str:
    return "yes" if holds else "no"


def _spreads(
    one: Mapping[str, Record], other: Mapping[str, Record], beside: Mapping[str, Record]
) -> list[list]:
    """How far medians moved, as quantiles over the cases that all three runs have:
    without and with wrong kernels.
    """
    ids = sorted(one.keys() & other.keys() & beside.keys())
    rows = []
    for words, run in (
        ("between two runs without wrong kernels", other),
        ("to the run with them", beside),
    ):
        moved = sorted(
            abs(math.log(_median_s(run[case]) / _median_s(one[case]))) for case in ids
        )
        rows.append(
            [
                len(ids),
                words,
                *(
                    f"{math.expm1(moved[math.ceil(share * len(moved)) - 1]):.1%}"
                    for share in SHARES
                ),
            ]
        )
    return rows


def _furthest(
    one: Mapping[str, Record], other: Mapping[str, Record], beside: Mapping[str, Record]
) -> list[list]:
    """The cases whose medians moved furthest to the run with wrong kernels, and those
    medians.
    """
    ids = one.keys() & other.keys() & beside.keys()
    by_move = sorted(
        ids,
        key=lambda case: -abs(math.log(_median_s(beside[case]) / _median_s(one[case]))),
    )
    return [
        [case, *(units.duration(_median_s(run[case])) for run in (one, other, beside))]
        for case in by_move[:_SHOWN]
    ]


def _median_s(record: Record) -> float:
    return statistics.median(record.samples_s)


if __name__ == "__main__":
    sys.exit(main())
