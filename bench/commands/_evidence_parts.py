"""The parts of an evidence: what makes each, in how long, how it is shown, and which are
there.

evidence.json says which parts there are, how each ended, and what it shows; README.md
is made from it. {"format", "device", "machine", "parts": {name: {"seconds", "ended",
"stopped", "text", "data"}}}. A part that has begun and not ended has "begun" alone.

Each `show_` function makes a section of the README from what its part has left in its
folder of unfinished files; what is kept moves up from there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from batchline import places
from batchline.bench import report, texts, units
from batchline.bench.cases import CLOCKS as CLOCKS_OF
from batchline.bench.errors import UsageError
from batchline.bench.measure import stand_in
from batchline.bench.report.render.markdown import draw
from batchline.bench.store import journal, run_json
from batchline.bench.store.files import DamagedFile, blamed_on, read_json, write_whole
from batchline.bench.store.history import why_unusable
from batchline.bench.texts import clean_line

CLOCKS = "clocks.json"
TESTS = "gpu-tests.txt"
SANITIZER = "sanitizer.json"
REPORT = "report.md"
DISPATCH_LOG = "dispatch.txt"
TABLES = "tables"
_CEILINGS = {
    "copy_bytes_per_s": "device memory, copied",
    "read_bytes_per_s": "device memory, read",
    "cache_bytes_per_s": "the last level of cache",
}
_MOST_LINES = 200
# How pytest prints a test that has ended, in several processes and in one, and one that
# has begun.
_SHARED = re.compile(r"\[gw\d+\] (?:\[ *\d+%\] )?([A-Z]+) (\S+::.+?)\s*$")
_ALONE = re.compile(r"(\S+::.+?) ([A-Z]+)(?: .*)?\[ *\d+%\]\s*$")
_BEGUN = re.compile(r"(\S+::\S.*?)\s*$")
_BAD = ("FAILED", "ERROR")
_MOST_NAMED = 50
FILE_NAME = "evidence.json"
STOPPED = "stopped by Ctrl-C; what it had by then is below"
_FORMAT = 1
_TO_STOP_S = 20  # of a part's limit, to write what it has


@dataclass(frozen=True)
class PartSection:
    """A part's section in markdown, what else is kept of it in evidence.json, and the
    files that are kept, each by the name that it gets.
    """

    text: str
    data: object = None
    files: Mapping[str, Path] | None = None


def show_clocks(asked) -> PartSection:
    path = asked.work / CLOCKS
    document = read_json(path)
    return PartSection(
        "\n\n".join(
            [clocks_table(document["clocks"], asked.device), _ceilings(document)]
        ),
        files={CLOCKS: path},
    )


def clocks_table(clocks: Mapping, device: str) -> str:
    """A row for each launch: what every clock reads, with NVBench's figures where there
    is a GPU.
    """
    own = list(
        dict.fromkeys(
            [*CLOCKS_OF[device], *(name for row in clocks.values() for name in row)]
        )
    )
    own = [name for name in own if name != "nvbench"]
    rows = []
    for launch, times in clocks.items():
        row = [
            launch,
            *(
                _time(times[name].get("median_s"), times[name].get("error"))
                for name in own
            ),
        ]
        if device == "cuda":
            beside = times.get("nvbench", {})
            row += [
                _time(beside.get("cold_s"), beside.get("error")),
                _time(beside.get("hot_s"), ""),
            ]
        rows.append(row)
    headers = [
        "launch",
        *own,
        *(["NVBench cold", "NVBench hot"] if device == "cuda" else []),
    ]
    note = (
        ""
        if device == "cuda"
        else "\n\nNVBench times GPUs only, so it has no column here."
    )
    return draw(headers, rows) + note


def _ceilings(document: Mapping) -> str:
    if not document["ceilings"]:
        return f"No ceilings: {document['why_no_ceilings']}."
    ceilings = document["ceilings"]
    rows = [
        [what, f"{units.size(ceilings[name])}/s"] for name, what in _CEILINGS.items()
    ]
    rows += [
        [f"products in {dtype}", f"{rate / 1e12:.3g} TFLOP/s"]
        for dtype, rate in ceilings["matmul_flops_per_s"].items()
    ]
    rows += [
        [f"an empty launch by {clock}", units.duration(seconds)]
        for clock, seconds in ceilings["launch_s"].items()
    ]
    return draw(["ceiling", "measured"], rows)


def _time(seconds: float | None, otherwise: str | None) -> str:
    return (
        units.duration(seconds) if seconds is not None else otherwise or "not measured"
    )


@dataclass(frozen=True)
class TestOutcomes:
    """What became of each test, by its name; of those that have begun and not ended,
    their names. `reasons`: a line for each that failed, as far as it says why.
    """

    outcomes: dict[str, str]
    unended: tuple[str, ...]
    reasons: dict[str, str]


def read_tests(lines: Sequence[str]) -> TestOutcomes:
    """What lines of pytest -vv say."""
    outcomes, begun, reasons = {}, {}, {}
    for line in lines:
        if match := _SHARED.match(line):
            outcomes[match[2]] = match[1]
        elif match := _ALONE.match(line):
            outcomes[match[1]] = match[2]
        elif line.startswith("  ") and (known := _of_known(line.strip(), outcomes)):
            reasons.setdefault(*known)
        elif line.startswith("tests/") and (match := _BEGUN.match(line)):
            begun[match[1]] = True
    return TestOutcomes(
        outcomes, tuple(name for name in begun if name not in outcomes), reasons
    )


def _of_known(line: str, outcomes: dict[str, str]) -> tuple[str, str] | None:
    """The name of the last test and the reason behind it, where the line is
    tests.failures_at_once's.
    """
    last = next(reversed(outcomes), None)
    if last and outcomes[last] in _BAD and line.startswith(f"{last}: "):
        return last, line.removeprefix(f"{last}: ")
    return None


def show_tests(asked) -> PartSection:
    path = asked.work / TESTS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    tests = read_tests(lines)
    if not tests.outcomes and not tests.unended:
        raise ValueError(
            clean_line(lines[-1]) if lines else "pytest has printed nothing"
        )
    counts = Counter(tests.outcomes.values())
    said = (
        ", ".join(
            f"{count} {outcome.lower()}" for outcome, count in counts.most_common()
        )
        or "none has ended"
    )
    failed = [name for name, outcome in tests.outcomes.items() if outcome in _BAD]
    rows = [
        f"- `{clean_line(name)}`: {tests.reasons.get(name, 'see the file')}"
        for name in failed[:_MOST_NAMED]
    ]
    if len(failed) > _MOST_NAMED:
        rows.append(f"- and {len(failed) - _MOST_NAMED} more")
    rows += [
        f"- `{clean_line(name)}`: had begun and not ended"
        for name in tests.unended[:_MOST_NAMED]
    ]
    text = (
        f"{said} (every test by name, the riskiest first: [{TESTS}]({TESTS})).\n\n"
        + "\n".join(rows)
    )
    return PartSection(text.rstrip(), files={TESTS: path})


def show_sanitizer(asked) -> PartSection:
    path = asked.work / SANITIZER
    document = read_json(path)
    if "why_not" in document:
        return PartSection(f"Not run: {document['why_not']}.", files={SANITIZER: path})
    rows = sorted(document["rows"], key=lambda row: row["result"] == "clean")
    results = [row["result"] for row in rows]
    counts = ", ".join(
        f"{results.count(result)} {result}" for result in dict.fromkeys(results)
    )
    table = draw(
        ["variant", "check", "result", "first line"],
        (
            [row["variant"], row["check"], _result(row), texts.clean_line(row["line"])]
            for row in rows
        ),
    )
    return PartSection(
        f"{len(rows)} checks: {counts}. Each on one small probe, in a process of its own.\n\n{table}",
        files={SANITIZER: path},
    )


def _result(row: Mapping) -> str:
    return f"{row['errors']} errors" if row["result"] == "errors" else row["result"]


def show_cases(asked) -> PartSection:
    """Of the run its file and its report; its plots, which `make report` draws from
    that, are too many to come back from a machine that is lent.
    """
    (folder,) = (asked.work / "runs").iterdir()
    run = journal.recover(folder)
    text = report.whole_readme(
        report.RunReport(run), "`make report` draws them from the run.json here"
    )
    (folder / REPORT).write_text(text, encoding="utf-8")
    summary = (
        f"{report.summary(run)}: [{REPORT}]({REPORT}), every sample in "
        f"`{run_json.FILE_NAME}`."
    )
    return PartSection(
        summary,
        files={
            REPORT: folder / REPORT,
            run_json.FILE_NAME: folder / run_json.FILE_NAME,
        },
    )


def show_noise(asked) -> PartSection:
    (folder,) = (asked.work / "noise").iterdir()
    path, study = run_json.study_path_in(folder), run_json.load_study(folder)
    text = report.training_on_terminal(study.noise, study.sweep, study.machine)
    return PartSection(
        "\n\n".join(["```", text, "```"]), files={run_json.STUDY_FILE_NAME: path}
    )


def show_dispatch(asked) -> PartSection:
    lines = (
        (asked.work / DISPATCH_LOG)
        .read_text(encoding="utf-8", errors="replace")
        .splitlines()
    )
    tables = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((asked.work / TABLES).glob("*.json"))
    }
    kept = (
        f"The tables of {', '.join(tables)} are in evidence.json; `batchline dispatch --run RUN` on this machine "
        "puts them where calls look them up."
        if tables
        else "No table follows from it."
    )
    shortened = lines[-_MOST_LINES:]
    return PartSection(
        "\n".join(["```", *map(texts.clean, shortened), "```", "", kept]),
        data=tables or None,
    )


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
    where that is sections. `needs_gpu` is what is missing without one; the stand-in is
    none.
    """

    name: str
    title: str
    limit_s: Mapping[str, float]
    command: Callable[[Asked], Sequence[str]]
    show: Callable[[Asked], PartSection]
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
        asked.work / CLOCKS,
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
    return _module("batchline.bench.measure.sanitizer", asked.work / SANITIZER)


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
        ("--run", str(asked.folder), "--into", str(asked.work / TABLES))
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
        show_clocks,
        files=(CLOCKS,),
    ),
    Part(
        "tests",
        "The tests of the GPU variants",
        {"cuda": 420, "cpu": 0},
        _tests,
        show_tests,
        files=(TESTS,),
        log=TESTS,
        needs_gpu="They run every variant on it, on every probe.",
    ),
    Part(
        "sanitizer",
        "compute-sanitizer",
        {"cuda": 270, "cpu": 0},
        _sanitizer,
        show_sanitizer,
        files=(SANITIZER,),
        needs_gpu="It watches each kernel's memory and its races.",
    ),
    Part(
        "cases",
        "The fixed list of cases",
        {"cuda": 510, "cpu": 510},
        _cases,
        show_cases,
        files=(run_json.FILE_NAME, REPORT),
    ),
    Part(
        "noise",
        "The gradient noise",
        {"cuda": 150, "cpu": 300},
        _noise,
        show_noise,
        files=(run_json.STUDY_FILE_NAME,),
    ),
    Part(
        "dispatch",
        "What calls take",
        {"cuda": 270, "cpu": 300},
        _dispatch,
        show_dispatch,
        log=DISPATCH_LOG,
    ),
)


def run_part(
    command: Sequence[str], limit_s: float, log: Path | None = None
) -> str | None:
    """Run it, with what it prints in `log` or on stderr; returns why it did not come to
    its end, or None.

    Shortly before its limit it is asked to end, and keeps what it has; at the limit it
    is killed.
    """
    to_stop_s = min(_TO_STOP_S, limit_s / 2)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else sys.stderr
        process = subprocess.Popen(
            command,
            cwd=places.CODE if places.IS_CHECKOUT else None,
            stdout=out,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
            env=_environment(),
        )
        try:
            code = process.wait(limit_s - to_stop_s)
        except subprocess.TimeoutExpired:
            _ask_to_end(process, to_stop_s)
            return f"stopped after {limit_s - to_stop_s:.0f} s, its limit; what it had by then is below"
        except KeyboardInterrupt:
            _ask_to_end(process, to_stop_s)
            return STOPPED
        finally:
            _kill(process)
    return None if code == 0 else f"exit code {code}"


def _environment() -> Mapping[str, str]:
    """What is printed is in the log at once, also where the process is killed."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def _ask_to_end(process: subprocess.Popen, longest_s: float) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        process.terminate()  # not SIGINT, which a shell makes its background jobs ignore
        process.wait(longest_s)


def _kill(process: subprocess.Popen) -> None:
    """The process and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Taken:
    """A part as it was taken. `ended` is why it did not come to its end, or None;
    `stopped`: that was Ctrl-C.

    `text` is its section of the README, in markdown, `data` what else is kept of it.
    """

    seconds: float
    ended: str | None
    text: str
    stopped: bool = False
    data: object = None


@dataclass(frozen=True)
class State:
    """What an evidence's folder has. `begun` is the part that was being taken when its
    process ended, or None.
    """

    folder: Path
    device: str
    machine: dict
    taken: dict[str, Taken] = field(default_factory=dict)
    begun: str | None = None

    def beginning(self, name: str) -> State:
        """With the part begun, and stored so."""
        return replace(self, begun=name)._stored()

    def ending(self, name: str, taken: Taken) -> State:
        """With the part taken, and stored so."""
        return replace(self, begun=None, taken={**self.taken, name: taken})._stored()

    def is_missing(self, name: str) -> bool:
        """Whether a part is still to be taken: it was not, or Ctrl-C stopped it."""
        return name not in self.taken or self.taken[name].stopped

    def _stored(self) -> State:
        parts = {name: asdict(taken) for name, taken in self.taken.items()}
        if self.begun:
            parts[self.begun] = {"begun": True}
        document = {
            "format": _FORMAT,
            "device": self.device,
            "machine": self.machine,
            "parts": parts,
        }
        write_whole(
            self.folder / FILE_NAME, json.dumps(document, indent=1, ensure_ascii=False)
        )
        return self


def open_state(folder: Path, device: str, machine: dict) -> State:
    """The state of a folder, which is made where it is not there.

    Raises:
        UsageError: if it can't be written, or has evidence of another machine, device
        or revision.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"can't write to {folder} ({error.strerror}): name another folder with --into"
        ) from error
    path = folder / FILE_NAME
    if not path.exists():
        if any(folder.iterdir()):
            raise UsageError(
                f"{folder} has files and no {FILE_NAME}: name another folder with --into"
            )
        return State(folder, device, machine)
    document = _read(path)
    with blamed_on(path):
        state = _parsed(folder, document)
    if why := _why_another(state, device, machine):
        raise UsageError(
            f"{folder} has evidence of another {why}: name another folder with --into"
        )
    return state


def _read(path: Path) -> dict:
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise DamagedFile(
            f"{path} is not of format {_FORMAT}: name another folder with --into"
        )
    return document


def _parsed(folder: Path, document: dict) -> State:
    parts = document["parts"]
    begun = next((name for name, part in parts.items() if part.get("begun")), None)
    taken = {name: Taken(**part) for name, part in parts.items() if name != begun}
    return State(folder, document["device"], document["machine"], taken, begun)


def _why_another(state: State, device: str, machine: dict) -> str | None:
    """What of the state is of elsewhere, in words, or None."""
    for what, theirs, ours in (
        ("device", state.device, device),
        ("machine", state.machine["device_name"], machine["device_name"]),
        (
            "revision",
            state.machine["revision"]["commit"],
            machine["revision"]["commit"],
        ),
    ):
        if theirs != ours:
            return f"{what} ({theirs}, and this is {ours})"
    return None
