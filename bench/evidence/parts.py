"""The parts of an evidence in their order: what makes each, in how long, and how its
files are shown.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.evidence import shown, shown_tests
from batchline.bench.evidence.shown import Shown
from batchline.bench.measure import stand_in
from batchline.bench.store import run_json
from batchline.bench.store.files import DamagedFile
from batchline.bench.verdicts.across_runs import why_unusable


@dataclass(frozen=True)
class Asked:
    """What a part is made for: the evidence's folder, the one that its unfinished files
    are in, the device, -k.
    """

    folder: Path
    work: Path
    device: str
    selection: str

    @property
    def device_option(self) -> str:
        """The device as --device takes it."""
        return stand_in.NAME if stand_in.is_on() else self.device


@dataclass(frozen=True)
class Part:
    """A section of the evidence.

    `limit_s` is the most that it takes on each device, to be killed then. `files` are
    those that it keeps, of the eight that there may be. `log` takes what it prints,
    where that is shown. `needs_gpu` is what is missing without one; the stand-in is
    none.
    """

    name: str
    title: str
    limit_s: Mapping[str, float]
    command: Callable[[Asked], Sequence[str]]
    show: Callable[[Asked], Shown]
    files: tuple[str, ...] = ()
    log: str | None = None
    needs_gpu: str | None = None

    def why_left_out(self, device: str) -> str | None:
        """Why it is not taken here, or None."""
        if not self.needs_gpu or (device == "cuda" and not stand_in.is_on()):
            return None
        return f"there is no GPU here{f' ({stand_in.WORDS})' if stand_in.is_on() else ''}. {self.needs_gpu}"


def named(names: Sequence[str]) -> list[Part]:
    """The parts of those names, in their order; all without names.

    Raises:
        UsageError: if there is no such part.
    """
    known = [part.name for part in PARTS]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no part {unknown[0]!r}: use {', '.join(known)}")
    return [part for part in PARTS if not names or part.name in names]


def _bench(asked: Asked, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "batchline",
        *arguments,
        "--device",
        asked.device_option,
    ]


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def _clocks(asked: Asked) -> list[str]:
    return _module(
        "batchline.bench.measure.timing.clock_check",
        asked.work / shown.CLOCKS,
        asked.device,
    )


def _tests(asked: Asked) -> list[str]:
    """The GPU tests in several processes where the library for that is there, one test
    at a time to each of them.
    """
    shared = (
        ("-n", "auto", "--dist", "load", "--maxschedchunk", "1")
        if importlib.util.find_spec("xdist")
        else ()
    )
    return _module(
        "pytest",
        "-m",
        "gpu",
        "-vv",
        "--tb",
        "short",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.failures_at_once",
        *shared,
    )


def _sanitizer(asked: Asked) -> list[str]:
    return _module("batchline.bench.evidence.sanitizer", asked.work / shown.SANITIZER)


def _cases(asked: Asked) -> list[str]:
    clocks = {"cuda": ("--clocks", "device_cold,graph")}.get(asked.device, ())
    return _bench(
        asked,
        "run",
        "--profile",
        "evidence",
        "--out",
        str(asked.work / "runs"),
        "--history",
        str(asked.work / "history"),
        f"-k={asked.selection}",
        *clocks,
    )


def _noise(asked: Asked) -> list[str]:
    profile = "smoke" if stand_in.is_on() else "evidence"
    return _bench(
        asked, "noise", "--profile", profile, "--out", str(asked.work / "noise")
    )


def _dispatch(asked: Asked) -> list[str]:
    """By the tables that follow from the cases, where those are whole; else by the
    tables that there are.
    """
    by_cases = (
        ("--run", str(asked.folder), "--out", str(asked.work / shown.TABLES))
        if _has_cases(asked.folder)
        else ()
    )
    return _bench(
        asked, "dispatch", "--profile", "evidence", f"-k={asked.selection}", *by_cases
    )


def _has_cases(folder: Path) -> bool:
    try:
        return why_unusable(run_json.load(folder)) is None
    except (UsageError, DamagedFile):
        return False


PARTS = (
    Part(
        "clocks",
        "The clocks beside NVBench, and the ceilings",
        {"cuda": 120, "cpu": 180},
        _clocks,
        shown.show_clocks,
        files=(shown.CLOCKS,),
    ),
    Part(
        "tests",
        "The tests of the GPU variants",
        {"cuda": 420, "cpu": 0},
        _tests,
        shown_tests.show,
        files=(shown_tests.FILE_NAME,),
        log=shown_tests.FILE_NAME,
        needs_gpu="They run every variant on it, on every probe.",
    ),
    Part(
        "sanitizer",
        "compute-sanitizer",
        {"cuda": 270, "cpu": 0},
        _sanitizer,
        shown.show_sanitizer,
        files=(shown.SANITIZER,),
        needs_gpu="It watches each kernel's memory and its races.",
    ),
    Part(
        "cases",
        "The fixed list of cases",
        {"cuda": 510, "cpu": 510},
        _cases,
        shown.show_cases,
        files=(run_json.FILE_NAME, shown.REPORT),
    ),
    Part(
        "noise",
        "The gradient noise",
        {"cuda": 150, "cpu": 300},
        _noise,
        shown.show_noise,
        files=(run_json.STUDY_FILE_NAME,),
    ),
    Part(
        "dispatch",
        "What calls take",
        {"cuda": 270, "cpu": 300},
        _dispatch,
        shown.show_dispatch,
        log=shown.DISPATCH_LOG,
    ),
)
