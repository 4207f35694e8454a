"""Processes that compile: each takes the next job when it is done with one, and a job
that ends its process is named.

Compiling has processes of its own, where replacing the drivers harms nothing else.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from batchline.bench import texts
from batchline.bench.stopping import put_off_and_kept_from_children

_LONGEST_S = 300  # without an answer: a compiler that hangs must not hold the others up
_MOST_PROCESSES = 8


def each(work: Callable, jobs: Sequence[Hashable]) -> tuple[dict, list[str]]:
    """As Pool.each, by processes that end afterwards."""
    with Pool(min(_MOST_PROCESSES, os.cpu_count() or 1, len(jobs))) as pool:
        return pool.each(work, jobs)


class Pool:
    """So many processes, which start with the first jobs and stay until the block ends."""

    def __init__(self, processes: int):
        self._count = max(1, processes)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; another piece of work would start them anew."""
        self._end(self._workers)

    def _end(self, workers: Iterable[_Worker]) -> None:
        for worker in list(workers):
            worker.end()
            self._workers.remove(worker)

    def each(
        self,
        work: Callable,
        jobs: Sequence[Hashable],
        until_s: float = math.inf,
        tell: Callable[[int], None] = lambda done: None,
    ) -> tuple[dict, list[str]]:
        """{job: work(*job)} of those that came to an end, and a line for each that did
        not.

        `tell` is called with the number of jobs that are over, each time that it grows;
        for the rest see `as_they_end`.
        """
        results, problems = {}, []
        for job, result, problem in self.as_they_end(work, jobs, until_s):
            if problem is None:
                results[job] = result
            else:
                problems.append(problem)
            tell(len(results) + len(problems))
        return results, problems

    def as_they_end(
        self, work: Callable, jobs: Sequence[Hashable], until_s: float = math.inf
    ) -> Iterator[tuple[Hashable, object, str | None]]:
        """(job, work(*job), None) of each as soon as it is over, or (job, None, why it
        came to no end in a line).

        Args:
            work: a module's function, for the processes import it.
            jobs: in the order in which they are started.
            until_s: on the monotonic clock; what is not done by then is left out.
        """
        waiting = deque(jobs)
        while len(self._workers) < min(self._count, len(jobs)):
            self._workers.append(_Worker())
        for worker in self._workers:
            worker.take(work, waiting)
        while busy := {
            worker.connection: worker
            for worker in self._workers
            if worker.job is not None
        }:
            left_s = until_s - time.monotonic()
            ready = (
                wait(list(busy), timeout=min(_LONGEST_S, left_s)) if left_s > 0 else []
            )
            if not ready and left_s < _LONGEST_S:
                self._end(busy.values())
                return
            for worker in [busy[connection] for connection in ready] or list(
                busy.values()
            ):
                job, (result, problem) = worker.job, worker.result(hung=not ready)
                worker.take(work, waiting)
                yield job, result, problem and f"{_name(job)}: {problem}"


def _name(job: Hashable) -> str:
    return " ".join(map(str, job)) if type(job) is tuple else str(job)


class _Worker:
    """One process and the job that it has, or None."""

    def __init__(self):
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Hashable | None = None
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with put_off_and_kept_from_children():
            self._process.start()
        theirs.close()

    def take(self, work: Callable, waiting: deque) -> None:
        self.job = waiting.popleft() if waiting else None
        if self.job is not None:
            try:
                self.connection.send((work, self.job))
            except BrokenPipeError:
                pass  # it has just died: the answer is the end of its pipe

    def result(self, hung: bool) -> tuple[object, str | None]:
        """The result, or why there is none; a process that died or hangs is replaced."""
        if hung:
            problem = f"did not compile within {_LONGEST_S} s"
        else:
            try:
                return self.connection.recv()
            except (EOFError, ConnectionResetError):
                self._process.join()
                problem = f"its process died ({_how(self._process.exitcode)})"
        self.renew()
        return None, problem

    def renew(self) -> None:
        """End the process, whatever it is doing, and start another one."""
        self.end()
        self._start()

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _serve(connection: Connection) -> None:
    gc.freeze()  # compilers make garbage by the million; what was imported before them is none
    gc.set_threshold(50_000, 50, 100)
    while True:
        try:
            work, job = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = work(*job), None
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever it raised is that job's problem
            answer = None, texts.error_line(error)
        connection.send(answer)
