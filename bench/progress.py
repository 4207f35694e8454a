"""What `bench run` shows while it works: one rewritten line on a terminal, a line a problem group in a log."""
from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from bench.cases import Case
from bench.records import BROKEN, MEASURED
from bench.units import duration


class Progress:
    """Counts the cases that really run here; the time left is theirs, at the pace so far."""

    def __init__(self, stream: TextIO = sys.stderr, now=time.monotonic):
        self._stream = stream
        self._now = now
        self._on_terminal = stream.isatty()
        self._to_do = self._done = 0
        self._started_s = 0.0
        self._group: tuple | None = None
        self._said: set[tuple[str, str, str]] = set()

    def start(self, cases: Sequence[Case]) -> None:
        self._to_do = sum(1 for case in cases if not case.refusal)
        self._started_s = self._now()
        self._say(f"{len(cases)} cases planned, {self._to_do} of them run here")

    def done(self, case: Case, status: str, reason: str, median_s: float | None) -> None:
        """Tell of one finished case and its median, None where it has none."""
        if status in BROKEN:
            self._say_once(case, status, reason)
        if case.refusal:
            return
        self._done += 1
        group = case.op, case.scenario, case.dtype
        what = duration(median_s) if status == MEASURED else status
        line = f"[{self._done:>{len(str(self._to_do))}}/{self._to_do}] {self._left():<16} {case.id} {what}"
        if self._on_terminal:
            self._stream.write(f"\r\x1b[K{line[:shutil.get_terminal_size().columns - 1]}")
            self._stream.flush()
        elif group != self._group:
            self._say(line)
        self._group = group

    def _say_once(self, case: Case, status: str, reason: str) -> None:
        """A file that is broken is so in each of its cases: one line names them all."""
        key = case.variant.id, status, reason
        if key not in self._said:
            self._said.add(key)
            self._say(f"{case.id}: {status}: {reason}" if case.variant.broken is None else
                      f"{case.variant.id}, in all its cases: {status}: {reason}")

    def end(self) -> None:
        if self._on_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _left(self) -> str:
        seconds = (self._now() - self._started_s) / self._done * (self._to_do - self._done)
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s left"

    def _say(self, line: str) -> None:
        self._stream.write(f"\r\x1b[K{line}\n" if self._on_terminal else f"{line}\n")
        self._stream.flush()
