"""`bench evidence`: all that a machine with a GPU can show, in one command and at most eight files.

Each part runs in a process of its own with its own time limit. A part that fails or runs out of time says so in the
README, and the next one begins.
"""
from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from bench import publishing, records, report, texts, units
from bench.console import complain
from bench.errors import UsageError
from bench.files import write_whole
from bench.folders import new_folder, remove_if_empty
from bench.measure import environment

INTERRUPTED = 130
DEFAULT_FOLDER = Path("reports", "evidence")
_UNFINISHED = Path("reports", "runs")  # which git ignores; what is whole moves to DEFAULT_FOLDER
_STOPPED = "stopped by Ctrl-C; what it had by then is below"
_REPOSITORY = Path(__file__).resolve().parents[1]
_TO_STOP_S = 30  # for a run that was interrupted to write what it has
_TABULATE = {"tablefmt": "github", "disable_numparse": True}


@dataclass(frozen=True)
class _Part:
    """A section of the evidence: what makes it, in how long, and how its files are read into the README."""

    title: str
    limit_s: Mapping[str, float]  # by device; a GPU machine's come to under nine minutes
    command: Callable[[Path, str, str], Sequence[str]]
    show: Callable[[Path, str], str]
    needs_gpu: str | None = None  # what is left out without one


def collect(device: str, out: Path | None, profile: str) -> int:
    """Make the evidence in `out`, by default a new folder under reports/evidence/; 0 if every part came to its end.

    Raises:
        UsageError: for an unknown device, or a folder that is there already or can't be written.
    """
    try:
        device = environment.resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    machine = environment.machine(device)
    folder = _given(out) if out else new_folder(_UNFINISHED, f"evidence {machine['device_name']}")
    sections, failed = [], 0
    try:
        for part in _PARTS:
            print(f"evidence: {part.title}", file=sys.stderr)
            text, ended = _made(part, folder, device, profile)
            failed += ended is not None
            sections.append(text)
            _write(folder, machine, sections)
            if ended == _STOPPED:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        remove_if_empty(folder)
        complain(f"stopped after {len(sections)} of {len(_PARTS)} parts" + (f": {folder}" if folder.exists() else ""))
        return INTERRUPTED
    if not out:
        folder = _moved(folder)
    print(f"evidence: {folder / report.FILE_NAME}")
    return 1 if failed else 0


def _made(part: _Part, folder: Path, device: str, profile: str) -> tuple[str, str | None]:
    """The part's section, and why it did not come to its end, or None."""
    if part.needs_gpu and device != "cuda":
        return f"## {part.title}\n\nLeft out: there is no GPU here. {part.needs_gpu}", None
    started_s = time.monotonic()
    ended = _run(part.command(folder.resolve(), device, profile), part.limit_s[device])
    text = _shown(part, folder, device)
    why = f"**Not to its end: {ended}.**\n\n" if ended else ""
    return f"## {part.title} ({time.monotonic() - started_s:.0f} s)\n\n{why}{text}", ended


def _moved(folder: Path) -> Path:
    """The folder, now that it is whole, among those that are committed; where that fails, it stays where it is."""
    place = DEFAULT_FOLDER / folder.name.replace("-evidence-", "-", 1)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return folder.rename(place)
    except OSError as error:
        complain(f"can't move it to {place} ({error.strerror})")
        return folder


def _given(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any((out / name).exists() for name in _FILES):
            raise UsageError(f"{out} holds evidence already: name another folder with OUT=")
        return out
    except OSError as error:
        raise UsageError(f"can't write to {out} ({error.strerror}): name another folder with OUT=") from error


def _run(command: Sequence[str], limit_s: float) -> str | None:
    """Run it; returns why it did not come to its end, or None.

    One that takes too long is asked to end, and keeps what it has.
    """
    process = subprocess.Popen(command, cwd=_REPOSITORY, stdout=sys.stderr, start_new_session=True)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        _ask_to_end(process)
        return f"stopped after {limit_s:.0f} s; what it had by then is below"
    except KeyboardInterrupt:
        _ask_to_end(process)
        return _STOPPED
    finally:
        _kill(process)
    return None if code == 0 else f"exit code {code}"


def _ask_to_end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        process.terminate()  # not SIGINT, which a shell makes its background jobs ignore
        process.wait(_TO_STOP_S)


def _kill(process: subprocess.Popen) -> None:
    """The process and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _shown(part: _Part, folder: Path, device: str) -> str:
    try:
        return part.show(folder, device)
    except Exception as error:  # whatever a part has left unfinished: the others are shown
        return f"Nothing to show: {texts.error_line(error)}"


def _write(folder: Path, machine: dict, sections: Sequence[str]) -> None:
    revision = machine["revision"]
    changed = " with uncommitted changes" if revision["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = (f"# Evidence from {machine['device_name']}\n\nMade by `make evidence` at revision "
            f"{revision['commit'][:12]}{changed}, Python {machine['python']}, {versions}"
            + (f", driver {machine['gpu']['driver']}" if machine.get("gpu") else "") + ".")
    missing = len(_PARTS) - len(sections)
    partial = [f"> **Partial.** {missing} of {len(_PARTS)} parts are missing."] if missing else []
    write_whole(folder / report.FILE_NAME, "\n\n".join([head, *partial, *sections]) + "\n")


def _bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench", *arguments]


def _test_command(folder: Path, device: str, profile: str) -> list[str]:
    script = f"{shlex.quote(sys.executable)} -m pytest -m gpu -rA -p no:cacheprovider"
    return ["sh", "-c", f"{script} > {shlex.quote(str(folder / _TESTS))} 2>&1"]


def _show_tests(folder: Path, device: str) -> str:
    lines = (folder / _TESTS).read_text(encoding="utf-8").splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    last = next((line for line in reversed(lines) if " in " in line), "no result")
    return "\n".join([f"`{last.strip('= ')}` (every test by name: [{_TESTS}]({_TESTS}))", "",
                      *(f"- `{line}`" for line in failures)]).rstrip()


def _run_command(folder: Path, device: str, profile: str) -> list[str]:
    return _bench("run", "--device", device, "--profile", profile, "--out", str(folder / _RUNS))


def _show_run(folder: Path, device: str) -> str:
    """Keep the run's file; its plots, which `make report` draws from that, are too many to come back from a device."""
    for run_folder in (folder / _RUNS).glob("*"):
        publishing.recovered(run_folder)
    for stored in (folder / _RUNS).glob(f"*/{records.FILE_NAME}"):
        stored.replace(folder / records.FILE_NAME)
    shutil.rmtree(folder / _RUNS, ignore_errors=True)
    run = records.load(folder)
    text = "\n\n".join(report.markdown(run, {}, "`make report` draws them from the run.json here"))
    (folder / _REPORT).write_text(text + "\n", encoding="utf-8")
    return f"{report.summary(run)}: [{_REPORT}]({_REPORT}), every sample in [{records.FILE_NAME}]({records.FILE_NAME})."


def _show_a_a(folder: Path, device: str) -> str:
    from bench import a_a

    document = json.loads((folder / a_a.FILE_NAME).read_text(encoding="utf-8"))
    pairs = [a_a.Pair(**pair) for pair in document["pairs"]]
    return f"```\n{a_a.summary(pairs, document['machine']['device_name'], document['clock'])}\n```"


def _show_clocks(folder: Path, device: str) -> str:
    from bench.cases import CLOCKS

    found = json.loads((folder / _CLOCKS).read_text(encoding="utf-8"))
    # Evidence of before has no clock but those of the device.
    own = list(dict.fromkeys([*CLOCKS[device], *(name for clocks in found.values() for name in clocks)]))
    own = [name for name in own if name != "nvbench"]
    rows = []
    for name, clocks in found.items():
        beside = clocks.get("nvbench", {})
        row = [name, *(_time(clocks[clock].get("median_s"), clocks[clock].get("error")) for clock in own)]
        if device == "cuda":
            row += [_time(beside.get("cold_s"), beside.get("error")), _time(beside.get("hot_s"), "")]
        rows.append(row)
    headers = ["launch", *own, *(["NVBench cold", "NVBench hot"] if device == "cuda" else [])]
    note = "" if device == "cuda" else "\n\nNVBench times GPUs only, so it has no column here."
    return tabulate(rows, headers=headers, **_TABULATE) + note


def _time(seconds: float | None, otherwise: str | None) -> str:
    return units.duration(seconds) if seconds is not None else otherwise or "not measured"


_TESTS, _REPORT, _CLOCKS, _RUNS = "gpu-tests.txt", "report.md", "clocks.json", "runs"
_FILES = (report.FILE_NAME, _TESTS, records.FILE_NAME, _REPORT, _CLOCKS, "a-a.json")
_PARTS = (
    _Part("The tests of the GPU variants", {"cuda": 150}, _test_command, _show_tests,
          needs_gpu="They run every variant on it, on every probe."),
    _Part("The clocks beside NVBench", {"cuda": 60, "cpu": 120},
          lambda folder, device, _: [sys.executable, "-m", "bench.measure.clock_check", str(folder / _CLOCKS), device],
          _show_clocks),
    _Part("Every case, and the machine's ceilings", {"cuda": 235, "cpu": 600}, _run_command, _show_run),
    _Part("A/A: each baseline against itself", {"cuda": 75, "cpu": 900},
          lambda folder, device, profile: _bench("aa", "--device", device, "--profile", profile, "--out", str(folder),
                                                 "--seconds", {"cuda": "0.2", "cpu": "3"}[device]), _show_a_a),
)
