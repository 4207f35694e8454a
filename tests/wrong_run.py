"""`python -m tests.wrong_run`: a smoke run with all wrong kernels dropped in, beside two runs without them.

It prints what became of each wrong kernel, and how far the honest ones' medians moved: between the two runs without
the wrong kernels, and from the first of those to the run with them. It exits with 1 if a wrong kernel was believed.
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
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from bench import records
from bench.records import MEASURED, UNSUPPORTED, Record
from bench.verdicts import eligible
from tests import wrong_kernels
from tests.trees import REPOSITORY, copy_sources

CHOSEN = "tiny_16 or square_64 or square_128 or square_256 or attention_scores or layer_norm"
DEADLINE_S = 8
SHARES = (0.5, 0.9, 1.0)


def main() -> int:
    """Make the three runs, print both tables, and return the exit code."""
    names = [name for _, name, _ in pkgutil.iter_modules(wrong_kernels.__path__) if not _is_right(name)]
    with tempfile.TemporaryDirectory() as folder:
        runs = [_run(Path(folder) / which, names if which == "wrong" else ()) for which in ("one", "other", "wrong")]
    rows = [_row(name, [record for record in runs[-1] if record.variant == name]) for name in names]
    print(tabulate(rows, ("wrong kernel", "its cases", "what was asked for", "is it so"), "github"))
    honest = [{record.id: record for record in run if record.variant not in names and record.status == MEASURED}
              for run in runs]
    print(f"\n{tabulate(_spreads(*honest), ('honest cases', 'moved', *SHARES), 'github')}")
    lost = sorted(honest[0].keys() & honest[1].keys() - honest[2].keys())
    print(f"\nWithout a time beside the wrong kernels: {', '.join(lost) or 'none'}")
    believed = [row[0] for row in rows if row[-1] != "yes"]
    print(f"Not as it must be: {', '.join(believed) or 'none'}")
    return 1 if believed or lost else 0


def _is_right(name: str) -> bool:
    """Whether a kernel is right, and costs memory alone."""
    return hasattr(importlib.import_module(f"{wrong_kernels.__name__}.{name}"), "KEEPS_BYTES")


def _run(root: Path, names: Sequence[str]) -> list[Record]:
    """What a smoke run measures in a copy of the sources with these kernels dropped in."""
    copy_sources(root)
    shutil.copytree(REPOSITORY / "reports" / "baselines", root / "reports" / "baselines")  # or all compiles here
    for name in names:
        module = importlib.import_module(f"{wrong_kernels.__name__}.{name}")
        declares = "".join(f", {field}={value!r}" if not callable(value) else f", {field}=DECLARES[{field!r}]"
                           for field, value in getattr(module, "DECLARES", {}).items())
        text = Path(module.__file__).read_text(encoding="utf-8")
        (root / "kernels" / module.OP.name / f"{name}.py").write_text(
            f'{text}\n\nOP.variant(backend="torch"{declares})({name})\n', encoding="utf-8")
    subprocess.run([sys.executable, "-m", "bench", "run", "--profile", "smoke", "--device", "cpu", "-k", CHOSEN,
                    "--deadline", str(DEADLINE_S), "--out", str(root / "runs"), "--history", str(root / "history")],
                   cwd=root, stdout=sys.stderr)
    (folder,) = (root / "runs").iterdir()
    return records.load(folder).records


def _row(name: str, found: Sequence[Record]) -> tuple[str, str, str, str]:
    """The kernel, how its cases ended, what had to be, and whether it is so in the cases that it takes."""
    module = importlib.import_module(f"{wrong_kernels.__name__}.{name}")
    ended = ", ".join(f"{count} {status}" for status, count in Counter(record.status for record in found).items())
    taken = [record for record in found if record.status != UNSUPPORTED]
    timed = [record for record in taken if record.status == MEASURED]
    if words := getattr(module, "UNRANKED_FOR", None):
        return name, ended, words, _yes(timed and not any(map(eligible.may_win, timed)))
    words = module.REFUSED_FOR
    told = any(re.search(words, record.reason) for record in taken)
    return name, ended, words, _yes(told and not timed)


def _yes(holds: object) -> str:
    return "yes" if holds else "no"


def _spreads(one: Mapping[str, Record], other: Mapping[str, Record], beside: Mapping[str, Record]) -> list[list]:
    """How far medians moved, as quantiles over the cases that all three runs have: without and with wrong kernels."""
    ids = sorted(one.keys() & other.keys() & beside.keys())
    rows = []
    for words, run in (("between two runs without wrong kernels", other), ("to the run with them", beside)):
        moved = sorted(abs(math.log(_median_s(run[case]) / _median_s(one[case]))) for case in ids)
        rows.append([len(ids), words, *(f"{math.expm1(moved[math.ceil(share * len(moved)) - 1]):.1%}"
                                        for share in SHARES)])
    return rows


def _median_s(record: Record) -> float:
    return statistics.median(record.samples_s)


if __name__ == "__main__":
    sys.exit(main())
