"""Stored files, damaged at random: each command that reads one ends with its report, or
with one line that names it.

`python -m tests.damage 1000` damages a stored file so many times for
every command, and prints how the commands ended. tests/test_damage.py does the same
with fewer.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from unittest import mock

from tabulate import tabulate

from batchline.__main__ import main
from batchline.bench import cases, statuses
from batchline.bench.commands import dispatch
from batchline.bench.measure.machine import environment
from batchline.bench.store import formats, history, load, rank_times, run_json
from batchline.bench.store.files import stored_below
from batchline.kernels.dispatch import VERSIONS
from tests.plans import planned
from tests.rank_evidence import measured
from tests.runs import save_document
from tests.test_records import document as small_run

EVIDENCE = Path(__file__).resolve().parents[1] / "reports" / "evidence"
LONGEST_S = 60
LEFT_OUT = "left out here"  # what takes long and reads no stored file
_OPS, _BATCHES = ("bmm", "wgrad_stats"), (1, 8, 64)
_HISTORY_RUNS = 3
_NOTHING_TO_SHOW = 3  # as of a run in which no case has a time
_PART = 25  # files that one process is given at once
_DEEP = 100_000
_VALUES = (
    None,
    True,
    "",
    0,
    -1,
    [],
    {},
    [[]],
    {"a": {"b": 1}},
    float("nan"),
    float("inf"),
    -float("inf"),
    0.5,
    1e308,
    -1e308,
    1e-320,
    10**30,
    10**400,
    "\ud800\x1b[31m::error::",
    "x" * 10_000,
    "1,024",
    "é\u202e🙂",
)


@functools.cache
def _newest_run() -> dict:
    """The newest run in reports/evidence that has every section; of two ops one
    scenario with few batch sizes.
    """
    folders = (path.parent for path in reversed(stored_below(EVIDENCE, "run.json")))
    run = next(run for run in map(load, folders) if run.noise and run.invariance)
    first = {}
    kept = []
    for record in run.records:
        if record.op not in _OPS or record.batch not in _BATCHES:
            continue
        if first.setdefault(record.op, record.scenario) == record.scenario:
            kept.append(replace(record, samples_s=record.samples_s[:20]))
    scenarios = set(first.values())

    def some(rows):
        return tuple(row for row in rows if row.scenario in scenarios)[:20]

    smaller = replace(
        run,
        records=tuple(kept),
        compiled=replace(run.compiled, kernels=some(run.compiled.kernels)),
        invariance=some(run.invariance),
        capacity=replace(run.capacity, trials=some(run.capacity.trials)),
    )
    return {"format": formats.RUN.number, **formats.to_json(smaller)}


def stored_run() -> dict:
    """A copy of that run."""
    return copy.deepcopy(_newest_run())


def damaged(document: dict, chance: random.Random) -> bytes:
    """The document as JSON with one thing wrong: a value, a key, a missing or doubled
    part, or the text itself.
    """
    changed = copy.deepcopy(document)
    if chance.random() < 0.85:
        _damage_a_value(changed, chance)
        return json.dumps(changed).encode()
    text = json.dumps(changed).encode()
    place = chance.randrange(len(text))
    return chance.choice(
        (
            lambda: text[:place],
            lambda: text[:place] + bytes([chance.randrange(256)]) + text[place + 1 :],
            lambda: text[:place] + text[place + chance.randrange(1, 40) :],
            lambda: b"",
            lambda: b"[" * _DEEP,
            lambda: b'{"batchline": ' + b"9" * 5000 + b"}",
        )
    )()


def _damage_a_value(document: dict, chance: random.Random) -> None:
    """Change one place in the tree. Every depth is as likely as any other, or the many
    samples would take them all.
    """
    node, way = document, []
    while (
        isinstance(node, (dict, list)) and node and (not way or chance.random() < 0.8)
    ):
        key = (
            chance.choice(list(node))
            if isinstance(node, dict)
            else chance.randrange(len(node))
        )
        way.append((node, key))
        node = node[key]
    parent, key = way[-1]
    kind = chance.random()
    if kind < 0.15:
        del parent[key]
    elif kind < 0.25 and isinstance(parent, dict):
        parent["renamed"] = parent.pop(key)
    elif kind < 0.3 and isinstance(parent, list):
        parent.append(parent[key])
    elif kind < 0.4 and isinstance(node, (int, float)) and not isinstance(node, bool):
        parent[key] = -node
    else:
        parent[key] = copy.copy(chance.choice(_VALUES))


@dataclass
class Outcome:
    """What a command did with damaged files: how many ended with which exit code, and
    which ended as they must not.
    """

    command: str
    codes: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def shown(self) -> int:
        """How many files it read all the same."""
        return self.codes.total() - self.codes[2] - len(self.failures)

    def add(self, other: "Outcome") -> None:
        """What it did with other files, too."""
        self.codes += other.codes
        self.failures += other.failures


def call(arguments: list[str], file: Path) -> tuple[int | None, str | None]:
    """(exit code, what is wrong with how the command ended, or None)."""
    output, errors = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, _time_is_up)
    sigterm = signal.getsignal(signal.SIGTERM)
    signal.alarm(LONGEST_S)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = main(arguments)
    except BaseException:  # whatever came through is what this looks for
        return None, traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGTERM, sigterm)
    return code, _why_wrong(code, errors.getvalue(), file)


def _time_is_up(number, frame):
    raise TimeoutError(f"not done after {LONGEST_S} s")


def _why_wrong(code: int, errors: str, file: Path) -> str | None:
    lines = [line for line in errors.splitlines() if line.startswith("batchline: ")]
    if "Traceback" in errors:
        return errors
    if code in (0, _NOTHING_TO_SHOW) or LEFT_OUT in errors:
        return None
    if code != 2:
        return f"exit code {code}: {errors}"
    if len(lines) != 1 or not (file.name in lines[0] or str(file.parent) in lines[0]):
        return f"not one line that names the file: {errors!r}"
    return None


def _run_file(folder: Path, content: bytes) -> Path:
    file = folder / "run" / run_json.FILE_NAME
    file.parent.mkdir()
    file.write_bytes(content)
    return file


def _ranks_file(folder: Path, content: bytes) -> Path:
    """What is stored of ranks beside a small run."""
    file = folder / "run" / rank_times.FILE_NAME
    file.parent.mkdir()
    save_document(file.parent, small_run())
    file.write_bytes(content)
    return file


def _history_file(folder: Path, content: bytes) -> Path:
    """A history of a few runs, the second of which is damaged."""
    whole = json.dumps(_history_line()).encode() + b"\n"
    file = folder / "some-cpu.jsonl"
    file.write_bytes(
        whole + content.replace(b"\n", b" ") + b"\n" + whole * (_HISTORY_RUNS - 2)
    )
    return file


@functools.cache
def _whole_line() -> dict:
    """A run as a history has it, with two kernels, each of which is a plot."""
    with tempfile.TemporaryDirectory() as scratch:
        file = history.append(run_json.parse(stored_run()), Path(scratch))
        line = json.loads(file.read_text(encoding="utf-8"))
    kernels = list(dict.fromkeys(case.rpartition("/B")[0] for case in line["cases"]))[
        :2
    ]
    line["cases"] = {
        case: facts
        for case, facts in line["cases"].items()
        if case.rpartition("/B")[0] in kernels
    }
    return line


def _history_line() -> dict:
    return copy.deepcopy(_whole_line())


def _measured_case(document: dict) -> str:
    return next(
        case["id"]
        for case in document["records"]
        if case["status"] == statuses.MEASURED
    )


def _run_of_here() -> dict:
    """The stored run, as if this machine had made it."""
    document = stored_run()
    # Read before the seconds are counted that a command may take.
    planned(document["plan"]["profile"], "cpu")
    machine = document["machine"]
    machine["device_name"] = environment.device_name("cpu")
    machine["versions"] = {
        name: metadata.version(name) for name in machine["versions"] if name in VERSIONS
    }
    return document


@contextlib.contextmanager
def _without_calls() -> Iterator[None]:
    """`batchline dispatch` to where it would call: the plan is read once, and no table is
    written.
    """

    def left_out(*_):
        raise RuntimeError(LEFT_OUT)

    with mock.patch.object(cases, "plan", planned), mock.patch.object(
        dispatch, "_verified", left_out
    ):
        yield


@dataclass(frozen=True)
class Subject:
    """A command that reads a stored file: how the file is made, and the arguments that
    name it.

    `within`: what it is called in.
    """

    document: Callable[[], dict]
    write: Callable[[Path, bytes], Path]
    arguments: Callable[[Path, dict], list[str]]
    within: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


SUBJECTS = {
    "report": Subject(
        stored_run, _run_file, lambda file, document: ["report", str(file.parent)]
    ),
    "report of ranks": Subject(
        measured, _ranks_file, lambda file, document: ["report", str(file.parent)]
    ),
    "explain": Subject(
        stored_run,
        _run_file,
        lambda file, document: [
            "explain",
            _measured_case(document),
            "--run",
            str(file.parent),
        ],
    ),
    "advise": Subject(
        stored_run,
        _run_file,
        lambda file, document: ["advise", "--run", str(file.parent)],
    ),
    "compare": Subject(
        stored_run,
        _run_file,
        lambda file, document: ["compare", *[str(file.parent)] * 2],
    ),
    "history": Subject(
        _history_line,
        _history_file,
        lambda file, document: [
            "history",
            "--history",
            str(file.parent),
            "--into",
            str(file.parent / "out"),
        ],
    ),
    "dispatch": Subject(
        _run_of_here,
        _run_file,
        lambda file, document: [
            "dispatch",
            "--run",
            str(file.parent),
            "--profile",
            "smoke",
            "--device",
            "cpu",
        ],
        _without_calls,
    ),
}


def fuzz(command: str, numbers: Iterable[int], seed: int = 0) -> Outcome:
    """Call one command on files that are damaged in as many ways; `numbers` and the
    seed say in which.
    """
    subject, outcome = SUBJECTS[command], Outcome(command)
    document = subject.document()
    for number in numbers:
        chance = random.Random(f"{seed} {number}")
        with tempfile.TemporaryDirectory() as scratch:
            file = subject.write(Path(scratch), damaged(document, chance))
            with subject.within():
                code, wrong = call(subject.arguments(file, document), file)
            outcome.codes[code] += 1
            if wrong:
                outcome.failures.append(
                    f"{command}, mutation {number} of seed {seed}: {wrong}"
                )
    return outcome


def _fuzz_part(part: tuple[str, Iterable[int]]) -> Outcome:
    return fuzz(*part)


def run(times: int) -> int:
    """Fuzz every command, print a table of how they ended and each failure; 1 if there
    is a failure.
    """
    outcomes = {command: Outcome(command) for command in SUBJECTS}
    parts = [
        (command, range(start, min(start + _PART, times)))
        for command in SUBJECTS
        for start in range(0, times, _PART)
    ]
    with multiprocessing.Pool() as pool:
        for part in pool.imap(_fuzz_part, parts):
            outcomes[part.command].add(part)
    for outcome in outcomes.values():
        print(*outcome.failures, sep="\n", end="\n" if outcome.failures else "")
    print(
        tabulate(
            [
                [
                    outcome.command,
                    times,
                    outcome.shown,
                    outcome.codes[2],
                    len(outcome.failures),
                ]
                for outcome in outcomes.values()
            ],
            [
                "command",
                "damaged files",
                "shown all the same",
                "refused in a line",
                "neither",
            ],
        )
    )
    return 1 if any(outcome.failures for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1])))
