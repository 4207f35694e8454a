"""What an op or a variant says of itself, read in a process that imports its file: data,
or why there is none.

Files are read in forked processes, with a deadline for every step: what a file does to
its process ends there. One that does anything to it has a process of its own. A fork
takes milliseconds where a new process takes seconds to import torch. What a fork sends
is data alone (JSON), so that nothing that it sends is run.
"""

from __future__ import annotations

import ctypes
import difflib
import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from batchline import own_ops
from batchline.bench.measure.checking.check import refusal_of
from batchline.bench.measure.checking.fence import Fence
from batchline.bench.measure.doing import Doing
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.statuses import (
    BROKEN,
    CRASHED,
    FAILED,
    HUNG,
    UNSUPPORTED,
    WRONG,
    NotMeasured,
)
from batchline.kernels.op import Audit, Op, Scenario, Tensors, Variant

_TOLD_S = 5.0  # how often it is told that a job is waited for
_LOOK_S = 0.05  # how often it is looked at whether a process has ended
_ENDING_S = 0.002  # likewise, where one has closed its pipe
_IN_ALL = 3  # times the deadline of a step: the longest that a job may take for a file
_MOST_BYTES = 2**24  # that one job may send
_PR_SET_PDEATHSIG = 1
_SAID, _FAILED, _DONE = "said", "failed", "done"

Begin = Callable[[str], None]  # told the name of each step before it
_RAISED = (Exception, SystemExit)
_OP_FUNCTIONS = (
    "inputs",
    "reference",
    "tolerance",
    "flops",
    "least_bytes",
    "describe",
    "dtypes",
)
_OUTPUT = re.compile(r"\w+\[")
_FEW = 8  # names, which are all told


@dataclass(frozen=True)
class Job:
    """`work(begin)` yields data, as JSON can hold it; `name` is whose work it is, in
    words, and `files` how many it is the work of.
    """

    name: str
    work: Callable[[Begin], Iterator]
    files: int = 1


@dataclass(frozen=True)
class Ended:
    """The data that a job has sent, and how it failed after that: a status and a
    reason, or None.
    """

    data: list
    failure: tuple[str, str] | None


@dataclass(frozen=True)
class Waiting:
    """A job that takes long: the step that it is at."""

    step: str


def each(
    jobs: Sequence[Job], deadline_s: float, at_once: int
) -> Iterator[tuple[Job, Ended | Waiting]]:
    """Each job and what came of it, as they end; in between, every few seconds, those
    that are waited for.

    Args:
        deadline_s: the longest that one step of a job may take.
        at_once: how many processes there are at a time.
    """
    waiting, running = deque(jobs), []
    gc.freeze()  # or each process's collector would write to, and so copy, all that it shares with this one
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(waiting.popleft()))
            open_pipes = [one.pipe for one in running if not one.is_closed]
            select.select(
                open_pipes,
                [],
                [],
                _LOOK_S if len(open_pipes) == len(running) else _ENDING_S,
            )
            for one in list(running):
                told = one.look(deadline_s)
                if isinstance(told, Ended):
                    running.remove(one)
                if told:
                    yield one.job, told
    finally:
        for one in running:
            one.end()


@dataclass
class _Running:
    """A job's process, as its parent sees it."""

    job: Job
    process: int
    pipe: int
    doing: Doing
    received: bytearray = field(default_factory=bytearray)
    is_closed: bool = False
    started_s: float = field(default_factory=time.monotonic)
    told_s: float = field(default_factory=time.monotonic)

    def look(self, deadline_s: float) -> Ended | Waiting | None:
        """Take what it has sent, and end it if it is late; what came of it, if it has
        ended.
        """
        self._receive()
        _, step, since_s = self.doing.read()
        now_s = time.monotonic()
        process, status = os.waitpid(self.process, os.WNOHANG)
        if process:
            self._receive()
            return self._ended(status, step)
        if now_s - since_s > deadline_s:
            return self._given_up(HUNG, f"not done after {deadline_s:g} s ({step})")
        longest_s = _IN_ALL * deadline_s * self.job.files
        if now_s - self.started_s > longest_s:
            return self._given_up(
                HUNG, f"not done after {longest_s:g} s in all ({step})"
            )
        if len(self.received) > _MOST_BYTES:
            return self._given_up(
                FAILED, f"it sent more than {_MOST_BYTES >> 20} MiB ({step})"
            )
        if now_s - self.told_s > _TOLD_S:
            self.told_s = now_s
            return Waiting(step)
        return None

    def end(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.pipe)

    def _receive(self) -> None:
        while not self.is_closed and len(self.received) <= _MOST_BYTES:
            try:
                part = os.read(self.pipe, 2**16)
            except BlockingIOError:
                return
            self.received += part
            self.is_closed = not part

    def _ended(self, status: int, step: str) -> Ended:
        os.close(self.pipe)
        data, failure = _read(bytes(self.received))
        if failure is None:
            code = os.waitstatus_to_exitcode(status)
            how = (
                f"was ended by {signal.Signals(-code).name}"
                if code < 0
                else f"ended with exit code {code}"
            )
            failure = CRASHED, f"its process {how} ({step})"
        return Ended(data, failure or None)

    def _given_up(self, status: str, reason: str) -> Ended:
        self.end()
        return Ended(_read(bytes(self.received))[0], (status, reason))


def _read(received: bytes) -> tuple[list, tuple | None]:
    """The data, and how it failed; () if it was done, None if it did not say how it
    ended.
    """
    data = []
    for line in received.split(b"\n")[:-1]:
        try:
            kind, *rest = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            return data, (FAILED, "what it sent can't be read")
        if kind == _DONE:
            return data, ()
        if kind == _FAILED:
            return data, tuple(map(str, rest))
        data += rest
    return data, None


def _start(job: Job) -> _Running:
    reading, writing = (
        end.detach() for end in socket.socketpair()
    )  # another job can open a pipe through /proc
    doing = Doing(multiprocessing.get_context("spawn"))
    doing.begin(job.name, "starting")
    parent = os.getpid()
    process = os.fork()
    if process == 0:
        try:
            _be_alone(parent, writing)
            _work(job, doing, writing)
        finally:
            os._exit(0)
    os.close(writing)
    os.set_blocking(reading, False)
    return _Running(job, process, reading, doing)


def _be_alone(parent: int, pipe: int) -> None:
    """Not to outlive the parent, and to be heard through the pipe alone: what a file
    prints is not for a terminal.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)


def _work(job: Job, doing: Doing, pipe: int) -> None:
    with open(pipe, "w", encoding="utf-8", closefd=False) as file:

        def send(*message) -> None:
            file.write(f"{json.dumps(message)}\n")
            file.flush()

        try:
            for data in job.work(lambda step: doing.begin(job.name, step)):
                send(_SAID, data)
        except (
            BaseException
        ) as error:  # SystemExit and KeyboardInterrupt, too: a file may raise anything
            send(_FAILED, *_failure(error))
        else:
            send(_DONE)


def _failure(error: BaseException) -> tuple[str, str]:
    try:
        refusal = refusal_of(error)
        return (refusal.status if refusal.status in BROKEN else FAILED), refusal.reason
    except Exception:  # its __str__ is its own, too
        return FAILED, f"{type(error).__name__}, whose message can't be had"


@dataclass(frozen=True)
class Request:
    """The problems to look at: those of all scenarios in these `dtypes` at these
    `batches`, or those named.

    `details`: also those scenarios that fill in a range. A problem of more than so many
    `flops` or `bytes` is left out. `problems`: (op, scenario, dtype, batch) each.
    `configs`: also the configurations of each tunable variant on each. `variants`: the
    only ones that are read, as op/variant, and of ops only theirs; None reads all.
    """

    dtypes: Sequence[str] = ()
    batches: Sequence[int] = ()
    details: bool = False
    flops: float = float("inf")
    bytes: float = float("inf")
    problems: Sequence[Sequence] | None = None
    configs: bool = False
    variants: Sequence[str] | None = None

    def reads_op(self, name: str) -> bool:
        """Whether an op is read."""
        return self.variants is None or any(
            one.partition("/")[0] == name for one in self.variants
        )

    def reads_variant(self, op: str, name: str) -> bool:
        """Whether a variant is read."""
        return self.variants is None or f"{op}/{name}" in self.variants


def op_job(name: str, file: str, request: Request, fence: Fence) -> Job:
    """Reads an op: what it declares, with its problems and those that are over the
    limits.
    """

    def work(begin: Begin) -> Iterator[dict]:
        begin("importing it")
        fence.accept()
        op = _op(name)
        _require_unchanged(fence)
        _require_op(op)
        problems, left_out = [], []
        for scenario, dtype, batch in _problems(op, request):
            begin(f"the problem {scenario} at B={batch}")
            one = _problem(op, scenario, dtype, batch)
            is_over = one["flops"] > request.flops or one["least_bytes"] > request.bytes
            (left_out if is_over else problems).append(one)
        yield _declared_op(op) | {"problems": problems, "left_out": left_out}

    return Job(file, work)


def variant_job(
    op_name: str,
    name: str,
    file: str,
    problems: Sequence[Mapping],
    configs: bool,
    fence: Fence,
) -> Job:
    """Reads a variant: what it declares, then why it does not take each problem, and
    its configurations there.
    """

    def work(begin: Begin) -> Iterator[dict]:
        begin("importing it")
        op = _op(op_name)
        yield from _variant_data(op, name, problems, configs, fence, begin)

    return Job(file, work)


def variants_job(
    title: str,
    op_name: str,
    names: Sequence[str],
    problems: Sequence[Mapping],
    configs: bool,
    fence: Fence,
) -> Job:
    """Reads several variants of an op in one process, as variant_job reads each: the
    name before its data. It fails if one of them does, or leaves the process otherwise
    than it was: then none of its data holds.
    """

    def work(begin: Begin) -> Iterator[str | dict]:
        begin("importing it")
        op = _op(op_name)
        before = list(op.variants)
        for name in names:
            yield name
            yield from _variant_data(
                op,
                name,
                problems,
                configs,
                fence,
                lambda step: begin(f"{name}.py: {step}"),
            )
            _require_unchanged(fence)
            _require(list(op.variants) == before, f"{name}.py registers another one")

    return Job(title, work, len(names))


def _variant_data(
    op: Op,
    name: str,
    problems: Sequence[Mapping],
    configs: bool,
    fence: Fence,
    begin: Begin,
) -> Iterator[dict]:
    begin("importing it")
    fence.accept()
    fence.keep_ops()
    variant = _variant(op, name)
    _require_unchanged(fence)
    _require_variant(variant)
    yield _declared_variant(variant)
    refusals, configurations = [], []
    for problem in problems:
        begin(f"supports on {problem['scenario']} at B={problem['batch']}")
        inputs = op.make_inputs(
            problem["scenario"], problem["batch"], problem["dtype"], "meta"
        )
        refusals.append(_refusal(variant, inputs))
        takes_it = variant.tunable and not refusals[-1]
        configurations.append(_configs(variant, inputs) if configs and takes_it else [])
    yield {"refusals": refusals, "configs": configurations}


def _op(name: str) -> Op:
    op = getattr(_imported(f"batchline.kernels.{name}"), name, None)
    if not isinstance(op, Op):
        raise NotMeasured(
            FAILED,
            f"it makes no Op called {name} (a folder that is no op begins with _)",
        )
    return op


def _variant(op: Op, name: str) -> Variant:
    if name in _modules(op):
        _imported(
            f"{op.package}.{name}"
        )  # for the error itself, which op.variants keeps for its first call
    variant = op.variants[name]
    if name in _modules(op) and variant.function.__module__ != f"{op.package}.{name}":
        how = f"import the op by `from . import {op.name}`, and "
        raise NotMeasured(
            FAILED,
            f"it registers no variant of {op.name}: {how if own_ops.has(op.folder) else ''}"
            "the name of a file that is none begins with _",
        )
    return variant


def _imported(module: str):
    try:
        return importlib.import_module(module)
    except _RAISED as error:
        refusal = refusal_of(error)
        raise NotMeasured(
            refusal.status, f"it does not load: {refusal.reason}"
        ) from error


def _require_unchanged(fence: Fence) -> None:
    """Raise NotMeasured if what was just imported has left the process otherwise than
    it was.
    """
    try:
        fence.look(None)
    except Tampered as tampered:
        raise NotMeasured(
            WRONG, f"when it is imported, {tampered.reason}"
        ) from tampered


def _modules(op: Op) -> list[str]:
    """The names of the files in an op's folder that should be variants, whatever they
    are called.
    """
    folders = sys.modules[op.package].__path__
    return [
        module.name
        for module in pkgutil.iter_modules(folders)
        if not module.name.startswith("_")
    ]


def _require_op(op: Op) -> None:
    for name in _OP_FUNCTIONS:
        _require(
            callable(getattr(op, name)),
            f"{name}={getattr(op, name)!r} is no function",
        )
    _require(op.scenarios, "scenarios: there are none")
    for scenario in op.scenarios.values():
        _require_scenario(scenario)
    _require(
        op.baseline in op.variants,
        f"baseline={op.baseline!r} names no variant{_meant(op.baseline, op.variants)}",
    )
    _require_example(op, op.example)


def _require_scenario(scenario: Scenario) -> None:
    _require(
        _is_name(scenario.name),
        f"scenarios: {scenario.name!r} can't be part of a case id: only ASCII letters, "
        "digits and _ can",
    )
    for dtype in scenario.dtypes:
        _require(
            isinstance(getattr(torch, dtype, None), torch.dtype),
            f"scenarios: {scenario.name}: {dtype!r} is no dtype of torch",
        )


def _require_example(op: Op, example: tuple[str, int]) -> None:
    scenario, batch = example
    _require(
        scenario in op.scenarios,
        f"example={example!r} names no scenario{_meant(scenario, op.scenarios)}",
    )
    _require(
        isinstance(batch, int) and batch > 0, f"example={example!r} has no batch size"
    )


def _require_variant(variant: Variant) -> None:
    op = variant.op
    others = [name for name in op.variants if name != variant.name]
    _require(
        variant.builds_on is None or variant.builds_on in others,
        f"builds_on={variant.builds_on!r} names no other variant of {op.name}{_meant(variant.builds_on, others)}",
    )
    for name in ("supports", "tolerance"):
        value = getattr(variant, name)
        _require(value is None or callable(value), f"{name}={value!r} is no function")
    _require_example(op, variant.example)
    if variant.gives is not None:
        most = _outputs(op) or variant.gives
        _require(
            isinstance(variant.gives, int) and 1 <= variant.gives <= most,
            f"gives={variant.gives!r} is no number of outputs of {op.signature}",
        )


def _require(holds: object, line: str) -> None:
    if not holds:
        raise NotMeasured(FAILED, line)


def _is_name(name: str) -> bool:
    return name.isascii() and name.isidentifier()


def _meant(name: object, names: Sequence[str] | Mapping[str, object]) -> str:
    """What may have been meant, or all that there is where that is little to say."""
    if close := difflib.get_close_matches(str(name), list(names), n=1):
        return f": did you mean {close[0]!r}?"
    return f" (there is {', '.join(names)})" if 0 < len(names) < _FEW else ""


def _outputs(op: Op) -> int | None:
    """How many outputs the op's signature shows; None where it is not that plain."""
    right = op.signature.partition("→")[2]
    return None if "…" in right else len(_OUTPUT.findall(right)) or None


def _declared_op(op: Op) -> dict:
    scenarios = [
        {
            "name": scenario.name,
            "title": scenario.title,
            "sizes": dict(scenario.sizes),
            "dtypes": list(scenario.dtypes),
            "detail": bool(scenario.detail),
        }
        for scenario in op.scenarios.values()
    ]
    return {
        "folder": str(op.folder),
        "signature": op.signature,
        "baseline": op.baseline,
        "scenarios": scenarios,
        "audit": _declared_audit(op.audit) if op.conditions else None,
        "variants": list(op.variants),
        "misnamed": [name for name in _modules(op) if not _is_name(name)],
    }


def _declared_audit(audit: Audit) -> dict:
    return {
        "errors": list(audit.names),
        "controls": {control.name: control.dtypes for control in audit.controls},
    }


def _declared_variant(variant: Variant) -> dict:
    return {
        "backend": variant.backend,
        "dtypes": variant.dtypes,
        "needs": variant.needs,
        "architectures": variant.architectures,
        "builds_on": variant.builds_on,
        "example": variant.example,
        "tunable": variant.tunable is not None,
        "own_tolerance": variant.tolerance is not None,
        "slow_start": bool(variant.slow_start),
        "detail": bool(variant.detail),
        "gives": variant.gives,
        "idea": variant.idea,
    }


def _problems(op: Op, request: Request) -> Iterator[tuple[str, str, int]]:
    """(scenario, dtype, batch) of each that is asked for."""
    if request.problems is not None:
        asked = (problem for name, *problem in request.problems if name == op.name)
        yield from (tuple(problem) for problem in asked if problem[0] in op.scenarios)
        return
    for scenario in op.scenarios.values():
        if request.details or not scenario.detail:
            for dtype in filter(scenario.dtypes.__contains__, request.dtypes):
                yield from ((scenario.name, dtype, batch) for batch in request.batches)


def _problem(op: Op, scenario: str, dtype: str, batch: int) -> dict:
    where = f"on {scenario} at B={batch} in {dtype}"
    inputs = _asked(
        "inputs", where, lambda: op.make_inputs(scenario, batch, dtype, "meta")
    )
    traits, sizes = _asked("describe", where, lambda: op.describe(*inputs))
    return {
        "scenario": scenario,
        "dtype": dtype,
        "batch": batch,
        "traits": str(traits),
        "sizes": list(map(int, sizes)),
        "flops": _asked("flops", where, lambda: float(op.flops(*inputs))),
        "least_bytes": _asked(
            "least_bytes", where, lambda: float(op.least_bytes(*inputs))
        ),
    }


def _asked(field: str, where: str, function: Callable[[], object]):
    """What an op's function returns."""
    try:
        return function()
    except _RAISED as error:
        refusal = refusal_of(error)
        raise NotMeasured(
            refusal.status, f"{field} {where}: {refusal.reason}"
        ) from error


def _refusal(variant: Variant, inputs: Tensors) -> tuple[str, str] | None:
    try:
        why = variant.why_unsupported(*inputs)
    except _RAISED as error:
        refusal = refusal_of(error)
        return refusal.status, f"supports raised {refusal.reason}"
    return (UNSUPPORTED, str(why)) if why else None


def _configs(variant: Variant, inputs: Tensors) -> list[dict]:
    """The variant's configurations on these inputs, the rule's first."""
    rule = dict(variant.tunable.rule(*inputs))
    return [
        rule,
        *(
            dict(one)
            for one in variant.tunable.candidates(*inputs)
            if dict(one) != rule
        ),
    ]
