"""How much of a command's work is done, on stderr: in place where that is a terminal, else
a line now and then.
"""

from __future__ import annotations

import sys
import time

from batchline.bench import console, units

_TELL_EVERY_S = 20.0


class Progress:
    """Tells within a `with` block; its line is gone afterwards."""

    def __init__(self):
        self._in_place = sys.stderr.isatty()
        self._began_s = self._told_s = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        if self._in_place:
            print(end=console.ERASED, file=sys.stderr, flush=True)

    def tell(self, done: int, count: int) -> None:
        """So many of so many pieces of work are over."""
        now_s = time.monotonic()
        line = f"[{done}/{count}] executed in {units.clock(now_s - self._began_s)}"
        if self._in_place:
            print(end=f"{console.ERASED}{line}", file=sys.stderr, flush=True)
        elif now_s - self._told_s > _TELL_EVERY_S:
            print(line, file=sys.stderr, flush=True)
            self._told_s = now_s
