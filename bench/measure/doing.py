"""What a worker is at, for its parent to read at any time."""

from __future__ import annotations

import ctypes
import time

DOING_BYTES = 512


class Doing:
    """What the worker is at: whose step, which step, since when. Written by the worker,
    read by the parent.

    In shared memory and without a lock, so that writing wakes nobody between two
    samples.
    """

    def __init__(self, context):
        self._text = context.RawArray(ctypes.c_char, DOING_BYTES)
        self._since_s = context.RawValue(ctypes.c_double, 0.0)

    def begin(self, whose: str, step: str) -> None:
        self._text.value = f"{whose}\n{step}".encode()[: DOING_BYTES - 1]
        self._since_s.value = time.monotonic()

    def read(self) -> tuple[str, str, float]:
        """(whose, step, since on the monotonic clock, in seconds); whose is "" for a
        step that is nobody's own.
        """
        whose, _, step = self._text.value.decode(errors="replace").partition("\n")
        return whose, step, self._since_s.value
