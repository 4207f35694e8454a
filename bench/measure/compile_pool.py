"""Processes that compile: each takes the next job when it is done with one, and a job that ends its process is named.

Compiling has processes of its own, where replacing the drivers harms nothing else.
"""
from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from multiprocessing.connection import Connection, wait

from bench import texts
from bench.stopping import put_off_and_kept_from_children

_LONGEST_S = 300  # without an answer: a compiler that hangs must not hold the others up
_MOST_PROCESSES = 8


def each(work: Callable, jobs: Sequence[Hashable]) -> tuple[dict, list[str]]:
    """{job: work(*job)} of those that came to an end, and a line for each that did not.

    `work` is a module's function, for the processes import it; the jobs are started in their order.
    """
    waiting, results, problems = deque(jobs), {}, []
    workers = [_Worker(work) for _ in range(max(1, min(_MOST_PROCESSES, os.cpu_count() or 1, len(jobs))))]
    try:
        for worker in workers:
            worker.take(waiting)
        while busy := {worker.connection: worker for worker in workers if worker.job is not None}:
            ready = wait(list(busy), timeout=_LONGEST_S)
            for worker in [busy[connection] for connection in ready] or list(busy.values()):
                job, (result, problem) = worker.job, worker.answer(hung=not ready)
                if problem is None:
                    results[job] = result
                else:
                    problems.append(f"{' '.join(map(str, job))}: {problem}")
                worker.take(waiting)
    finally:
        for worker in workers:
            worker.end()
    return results, problems


class _Worker:
    """One process and the job that it has, or None."""

    def __init__(self, work: Callable):
        self._work = work
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Hashable | None = None
        self._process = context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        with put_off_and_kept_from_children():
            self._process.start()
        theirs.close()

    def take(self, waiting: deque) -> None:
        self.job = waiting.popleft() if waiting else None
        if self.job is not None:
            try:
                self.connection.send(self.job)
            except BrokenPipeError:
                pass  # it has just died: the answer is the end of its pipe

    def answer(self, hung: bool) -> tuple[object, str | None]:
        """The result, or why there is none; a process that died or hangs is replaced."""
        if hung:
            problem = f"did not compile within {_LONGEST_S} s"
        else:
            try:
                return self.connection.recv()
            except (EOFError, ConnectionResetError):
                self._process.join()
                problem = f"its process died ({_how(self._process.exitcode)})"
        self.end()
        self._start()
        return None, problem

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _serve(connection: Connection, work: Callable) -> None:
    gc.freeze()  # compilers make garbage by the million; what was imported before them is none
    gc.set_threshold(50_000, 50, 100)
    while True:
        try:
            job = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = work(*job), None
        except (Exception, SystemExit) as error:  # whatever it raised is that job's problem
            answer = None, texts.error_line(error)
        connection.send(answer)
