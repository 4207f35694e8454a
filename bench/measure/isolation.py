"""The parent's side of isolation: a worker process that is asked to measure, and replaced when a variant ends it."""
from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from bench.measure.task import Outcome, Task
from bench.measure.worker import Doing, serve
from bench.records import CRASHED, FAILED, HUNG, NOT_REACHED, OUT_OF_MEMORY
from bench.stopping import put_off_and_kept_from_children

_START_S = 120   # to import torch, and on a GPU to make a context
_MOST_HANGS = 2  # of one variant in one dtype; each costs a whole deadline
PROBES = "probes"  # the step in which a variant is checked once for all its cases in a dtype


class WorkerLost(Exception):
    """The worker is gone, or was killed at the deadline: whose step it was, which, and what became of it."""

    def __init__(self, status: str, reason: str, whose: str, step: str):
        super().__init__(reason)
        self.status, self.reason, self.whose, self.step = status, reason, whose, step


class Isolation:
    """Measures tasks in a worker process. A variant that ends it gets its row, and the others a fresh worker.

    `tree`: the folder whose `kernels` are measured, where that is not the one beside this `bench`.
    """

    def __init__(self, device: str, deadline_s: float, tree: Path | None = None):
        self._device = device
        self._tree = str(tree) if tree else None
        self._deadline_s = deadline_s
        self._context = multiprocessing.get_context("spawn")
        self._process = None
        self._refused: dict[tuple[str, str, str], Outcome] = {}
        self._hangs: dict[tuple[str, str, str], int] = {}
        self._start()

    def call(self, method: str, *arguments):
        """Runner.`method`(*arguments) in the worker.

        Raises:
            WorkerLost: if the worker ended or was not done with one step by the deadline; a fresh one is started.
            RuntimeError: if it answered with an error of our own.
        """
        self.ask(method, *arguments)
        return self.answer()

    def ask(self, method: str, *arguments) -> None:
        """Put a request to the worker; its `answer` must be fetched before the next."""
        if self._process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError):  # it has just died: wait for its exit code as usual
            self._connection.send((method, arguments))

    def answer(self):
        """What the worker answers to what it was asked. Raises as `call` does."""
        try:
            kind, result = self._wait()
        except WorkerLost:
            self.close()
            raise
        if kind == "lost":
            whose, step, _ = self._doing.read()
            self.close()
            raise WorkerLost(CRASHED, result, whose, step)
        if kind == "raised":
            raise RuntimeError(result)
        return result

    def measure(self, task: Task) -> dict[str, Outcome]:
        """Every entry's outcome, by label. The task is begun anew without the entry that ended its worker."""
        outcomes = dict(self._refusals(task))
        while left := task.without(outcomes):
            try:
                return outcomes | self.call("measure", left)
            except WorkerLost as lost:
                outcome = Outcome(lost.status, f"{lost.reason} ({lost.step})")
                if lost.whose not in left.labels:
                    return outcomes | dict.fromkeys(left.labels, outcome)
                outcomes[lost.whose] = outcome
                self._remember(left, lost, outcome)
            except RuntimeError as error:  # ours, not a variant's; the run goes on all the same
                return outcomes | dict.fromkeys(left.labels, Outcome(FAILED, f"Batchline itself failed: {error}"))
        return outcomes

    def close(self) -> None:
        """End the worker, whatever it is doing."""
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()
        self._process = None

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._doing = Doing(self._context)
        self._process = self._context.Process(target=serve, daemon=True,
                                              args=(theirs, self._doing, self._device, self._tree))
        with put_off_and_kept_from_children():  # or a Ctrl-C while it starts would print its traceback
            self._process.start()
        theirs.close()
        self._oom_kills = _oom_kills()

    def _wait(self) -> tuple[str, object]:
        """The worker's next answer; raises WorkerLost."""
        asked_s = time.monotonic()
        while True:
            whose, step, since_s = self._doing.read()
            longest_s = self._deadline_s + (_START_S if step in ("", "starting") else 0)
            left_s = max(since_s, asked_s) + longest_s - time.monotonic()
            if left_s <= 0:
                raise WorkerLost(HUNG, f"not done after {longest_s:g} s", whose, step)
            look_s = min(left_s, self._deadline_s / 8)  # the next step has its own deadline, and no way to say so
            ready = multiprocessing.connection.wait([self._connection, self._process.sentinel], look_s)
            if self._connection in ready:
                with contextlib.suppress(EOFError, ConnectionResetError):
                    return self._connection.recv()
            if ready:
                self._process.join()
                status, reason = self._how_it_ended()
                raise WorkerLost(status, reason, *self._doing.read()[:2])

    def _how_it_ended(self) -> tuple[str, str]:
        code = self._process.exitcode
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return OUT_OF_MEMORY, "the kernel killed its process when memory ran out"
        if code < 0:
            return CRASHED, f"its process was ended by {signal.Signals(-code).name}"
        return CRASHED, f"its process ended with exit code {code}"

    def _refusals(self, task: Task) -> Iterator[tuple[str, Outcome]]:
        for label, variant in task.entries:
            key = task.op, variant, task.dtype
            if key in self._refused:
                yield label, self._refused[key]
            elif self._hangs.get(key, 0) >= _MOST_HANGS:
                yield label, Outcome(NOT_REACHED, f"given up: it hung on {_MOST_HANGS} cases in {task.dtype} before")

    def _remember(self, task: Task, lost: WorkerLost, outcome: Outcome) -> None:
        key = task.op, dict(task.entries)[lost.whose], task.dtype
        if lost.step.startswith(PROBES):
            self._refused[key] = outcome
        elif lost.status == HUNG:
            self._hangs[key] = self._hangs.get(key, 0) + 1


def _oom_kills() -> int:
    """How many processes the kernel has killed for want of memory so far; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
