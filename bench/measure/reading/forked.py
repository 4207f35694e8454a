"""Work in forked processes, each in one of its own, with a deadline for every step:
what it does to itself ends there.

A fork takes milliseconds where a new process takes seconds to import torch. What a fork
sends is data alone (JSON), so that nothing that it sends is run.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from batchline.bench.measure.checking.check import refusal_of
from batchline.bench.measure.doing import Doing
from batchline.bench.statuses import BROKEN, CRASHED, FAILED, HUNG

_TOLD_S = 5.0  # how often it is told that a job is waited for
_LOOK_S = 0.05  # how often it is looked at whether a process has ended
_ENDING_S = 0.002  # likewise, where one has closed its pipe
_IN_ALL = 3  # times the deadline of a step: the longest that a job may take
_MOST_BYTES = 2**24  # that one job may send
_PR_SET_PDEATHSIG = 1
_SAID, _FAILED, _DONE = "said", "failed", "done"

Begin = Callable[[str], None]  # told the name of each step before it


@dataclass(frozen=True)
class Job:
    """`work(begin)` yields data, as JSON can hold it; `name` is whose work it is, in
    words.
    """

    name: str
    work: Callable[[Begin], Iterator]


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
        if now_s - self.started_s > _IN_ALL * deadline_s:
            return self._given_up(
                HUNG, f"not done after {_IN_ALL * deadline_s:g} s in all ({step})"
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
