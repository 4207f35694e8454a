"""What passes between the run and its worker process: tasks one way, outcomes the other,
as lines of JSON; and how far the parent believes them.

A variant runs in the worker and can write to its pipe. So the parent reads nothing that
could run code in it (no pickle), takes only the answer to the request at hand, known by
a number drawn for it, and only one; and it holds the answer to what it knows itself:
the labels that it asked for, and the time that passed by its own clock.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from batchline.bench import texts
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.statuses import MEASURED, STATUSES

OWN_FAULT = (
    "Batchline itself failed: "  # so begins the reason where no variant is to blame
)
DONE, RAISED, LOST, TAMPERED = "done", "raised", "lost", "tampered"
"""What an answer may be: a result; an error of our own; a lost device; a process that a variant has changed."""
MOST_BYTES = (
    2**25
)  # of one answer; the largest ones, of the noise of a workload, have about 2 ** 20
_MOST_SAMPLES = 10_000
_SENT = "status", "reason", "samples_s", "iterations", "facts"  # of an outcome
_CLOCKS_AGREE = 1.01  # two readings of one clock, in two processes
_CHUNK_BYTES = 2**16


@dataclass(frozen=True)
class Task:
    """One problem (op, scenario, dtype, batch) and the variants to measure on it, in
    turns.

    `entries` are (label, variant's name); a label is the entry's name in the outcomes,
    so a variant may stand twice. Where `configs` has an entry's label, its variant is
    launched with that configuration whatever it would choose. A variant whose one call
    takes over `longest_call_s` is not timed.
    On a GPU, `sustained_s` is how long a large product is called in a row
    (bench.measure.timing.sampling), 0 for not at all. An entry whose label is in `planted`
    takes that share of its time more (bench.measure.worker.preparing). Without `probes` the
    variants are checked on the problem itself only: they have passed their op's
    elsewhere. From `nearby_seed` come the sizes near the scenario's on which they are
    checked; None: nobody can foresee those. `clocks` are names; the first is the one
    whose samples rank, and gets `effort`; the others get `other_effort`.
    """

    op: str
    scenario: str
    dtype: str
    batch: int
    entries: tuple[tuple[str, str], ...]
    clocks: tuple[str, ...]
    effort: Effort
    other_effort: Effort
    warm_up_s: float
    energy_s: float = 0.0
    sustained_s: float = 0.0
    longest_call_s: float = math.inf
    configs: Mapping[str, Mapping] = field(default_factory=dict)
    planted: Mapping[str, float] = field(default_factory=dict)
    probes: bool = True
    nearby_seed: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for label, _ in self.entries)

    def without(self, labels: Container[str]) -> "Task | None":
        """The task with no entry of these labels; None if none is left."""
        left = tuple(entry for entry in self.entries if entry[0] not in labels)
        return replace(self, entries=left) if left else None

    def only(self, label: str) -> "Task":
        """The task with this entry alone."""
        return replace(
            self, entries=tuple(entry for entry in self.entries if entry[0] == label)
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one entry: a status and reason from bench.statuses, and where it
    was measured samples and facts. `rank` is the one whose device measured it, None in
    a run of one device.
    """

    status: str
    reason: str = ""
    samples_s: tuple[float, ...] = ()
    iterations: int = 1
    facts: Mapping = field(default_factory=dict)
    rank: int | None = None


class WorkerLost(Exception):
    """The worker has ended or can't be believed any more: what became of it, in whose
    step ("" is nobody's) and which.

    `certain`: `whose` was seen to change the process, and not only to have the turn.
    """

    def __init__(
        self, status: str, reason: str, whose: str, step: str, certain: bool = False
    ):
        super().__init__(reason)
        self.status, self.reason, self.whose, self.step, self.certain = (
            status,
            reason,
            whose,
            step,
            certain,
        )

    @property
    def outcome(self) -> Outcome:
        """What it means for the one who is to blame."""
        return Outcome(
            self.status, f"{self.reason} ({self.step})" if self.step else self.reason
        )


class DeviceLost(Exception):
    """The device's context is gone (an illegal access): nothing more can be done in
    this process.
    """


class Forged(Exception):
    """What came from the worker is not its answer to what it was asked."""


@dataclass(frozen=True)
class Answer:
    """One answer: of which kind, what it holds (JSON's kinds of data), and its worker's
    clock when it had begun and ended, in seconds (time.perf_counter, which all
    processes share on Linux).
    """

    kind: str
    content: object
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Asked:
    """One request, and what bounds its answer: the labels that were asked for, and
    when, by the parent's clock.
    """

    number: str
    method: str
    labels: tuple[str, ...]
    at_s: float


def encoded(number: str, answer: Answer) -> bytes:
    """An answer as a line; raises TypeError where its content is not JSON's, and no
    Outcome.
    """
    fields = {
        "number": number,
        **dataclasses.asdict(dataclasses.replace(answer, content=None)),
    }
    return (
        json.dumps(fields | {"content": answer.content}, default=_fields_of).encode()
        + b"\n"
    )


def _fields_of(value) -> dict:
    if isinstance(value, Outcome):
        fields = {name: getattr(value, name) for name in _SENT}
        return fields | {"reason": texts.clean_line(value.reason)}
    raise TypeError(f"a worker can't answer with a {type(value).__name__}")


class Lines:
    """Reads lines from a worker's connection as they come, without waiting for one to
    be complete.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._begun = bytearray()

    def next(self) -> bytes | None:
        """A line, once there is one; to be called when the descriptor is ready to be
        read.

        Raises:
            EOFError: if the other end is closed.
            Forged: if more comes than an answer may have, or more than one answer.
        """
        chunk = os.read(self._descriptor, _CHUNK_BYTES)
        if not chunk:
            raise EOFError
        line, end, rest = chunk.partition(b"\n")
        self._begun += line
        if len(self._begun) > MOST_BYTES:
            raise Forged(f"more than {MOST_BYTES // 2 ** 20} MiB in one answer")
        if rest:
            raise Forged("more than one answer")
        if not end:
            return None
        whole, self._begun = bytes(self._begun), bytearray()
        return whole


def decoded(line: bytes, asked: Asked, now_s: float) -> Answer:
    """The answer in a line, its result as `Runner`'s method gives it.

    Raises:
        Forged: if it is not an answer to `asked`.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Forged(f"no answer but {_printable(line)}") from error
    if not isinstance(fields, dict) or set(fields) != {
        "number",
        "kind",
        "content",
        "began_s",
        "ended_s",
    }:
        raise Forged(f"no answer but {_printable(line)}")
    if fields.pop("number") != asked.number:
        raise Forged("an answer that nobody asked for")
    answer = Answer(**fields)
    if answer.kind not in _KINDS or not _in_order(
        asked.at_s, answer.began_s, answer.ended_s, now_s
    ):
        raise Forged(
            f"an answer of kind {_printable(answer.kind)}, begun and ended when it can't have been"
        )
    return dataclasses.replace(
        answer, content=_KINDS[answer.kind](answer.content, asked, now_s)
    )


def _in_order(asked_s: float, began_s, ended_s, now_s: float) -> bool:
    return (
        _is_number(began_s)
        and _is_number(ended_s)
        and asked_s <= began_s <= ended_s <= now_s
    )


def _result(content, asked: Asked, now_s: float):
    read = _RESULTS.get(asked.method)
    clean = texts.cleaned(content)
    return read(clean, asked, now_s) if read else clean


def _line(content, asked: Asked, now_s: float) -> str:
    _require(isinstance(content, str), "an error without a text")
    return texts.clean_line(content)


def _tampering(content, asked: Asked, now_s: float) -> tuple[str | None, str]:
    """(whose, reason) of a bench.measure.machine.process_state.Tampered."""
    _require(
        isinstance(content, list) and len(content) == 2,
        "no account of what a variant has changed",
    )
    whose, reason = content
    _require(
        whose is None or isinstance(whose, str),
        "no account of who has changed something",
    )
    return whose, _line(reason, asked, now_s)


def _outcomes(content, asked: Asked, now_s: float) -> dict[str, Outcome]:
    """Outcomes by label, of all that were asked for and no other, and of no more time
    than has passed.
    """
    _require(
        isinstance(content, dict) and set(content) == set(asked.labels),
        "outcomes of other entries",
    )
    outcomes = {label: _outcome(content[label]) for label in asked.labels}
    _require_time(sum(map(_timed_s, outcomes.values())), now_s - asked.at_s)
    return outcomes


def _released(content, asked: Asked, now_s: float) -> tuple[dict[str, Outcome], dict]:
    """What Runner.release gives: outcomes without samples, and the machine's state."""
    _require(isinstance(content, list) and len(content) == 2, "no outcomes and state")
    outcomes, state = content
    _require(
        isinstance(outcomes, dict) and isinstance(state, dict), "no outcomes and state"
    )
    return {
        label: _outcome(fields, timed=False) for label, fields in outcomes.items()
    }, state


def _turn(content, asked: Asked, now_s: float) -> tuple[list[float], str | None]:
    """What Runner.turn gives: samples in seconds, and why the machine was slowed down,
    or None.
    """
    _require(isinstance(content, list) and len(content) == 2, "no samples of a turn")
    samples_s, throttled = content
    _require(_are_samples(samples_s, least=0), "samples that are no times")
    _require(throttled is None or isinstance(throttled, str), "no state of the machine")
    _require_time(sum(samples_s), now_s - asked.at_s)
    return samples_s, throttled


def _outcome(fields, timed: bool = True) -> Outcome:
    _require(isinstance(fields, dict) and set(fields) == set(_SENT), "no outcome")
    status, reason, samples_s, iterations, facts = (fields[name] for name in _SENT)
    _require(
        status in STATUSES and isinstance(reason, str) and isinstance(facts, dict),
        "no outcome",
    )
    _require(type(iterations) is int and iterations > 0, "samples of no calls")
    _require(
        _are_samples(samples_s, least=1 if timed and status == MEASURED else 0),
        "samples that are no times",
    )
    return Outcome(
        status, texts.clean_line(reason), tuple(samples_s), iterations, facts
    )


def _timed_s(outcome: Outcome) -> float:
    """The seconds that an outcome's samples say have been timed, by the clock that
    ranks and by the others.
    """
    ranked_s = sum(outcome.samples_s) * outcome.iterations
    clocks = outcome.facts.get("clocks", {})
    _require(isinstance(clocks, dict), "clocks without names")
    others_s = sum(
        _clock_s(facts)
        for name, facts in clocks.items()
        if name != outcome.facts.get("clock")
    )
    return ranked_s + others_s


def _clock_s(facts) -> float:
    """The least that a clock has timed: half of its samples are as long as the median,
    or longer.
    """
    _require(isinstance(facts, dict), "clocks without figures")
    if "median_s" not in facts:
        return 0.0
    figures = [facts.get(name) for name in ("median_s", "samples", "iterations")]
    _require(
        all(_is_number(figure) and figure > 0 for figure in figures),
        "clocks without figures",
    )
    return math.prod(figures) / 2


def _require_time(timed_s: float, passed_s: float) -> None:
    _require(
        timed_s <= passed_s * _CLOCKS_AGREE,
        f"samples of {timed_s:.3g} s in an answer that took {passed_s:.3g} s",
    )


def _are_samples(samples_s, least: int) -> bool:
    return (
        isinstance(samples_s, Sequence)
        and not isinstance(samples_s, str)
        and least <= len(samples_s) <= _MOST_SAMPLES
        and all(_is_number(sample_s) and sample_s > 0 for sample_s in samples_s)
    )


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Forged(otherwise)


def _printable(value) -> str:
    return repr(
        texts.clean_line(
            value.decode(errors="replace") if isinstance(value, bytes) else value, 60
        )
    )


_KINDS: Mapping[str, Callable] = {
    DONE: _result,
    RAISED: _line,
    LOST: _line,
    TAMPERED: _tampering,
}
_RESULTS: Mapping[str, Callable] = {
    "measure": _outcomes,
    "release": _released,
    "turn": _turn,
}
