"""What a worker prints, before it reaches a terminal or a log: line by line, cleaned,
not without end.
"""

from __future__ import annotations

from batchline.bench import texts

MOST_BYTES = 2**16  # of one worker
_LONGEST_LINE = 2000
_TOO_MUCH = f"\n(it printed more than {MOST_BYTES // 1024} KiB: the rest is left out)\n".encode()


class Printed:
    """Takes the bytes that a worker writes and gives back the lines that may be shown."""

    def __init__(self):
        self._left = MOST_BYTES
        self._line = b""

    def show(self, chunk: bytes) -> str:
        """The lines that `chunk` completes, each ended by a line feed; "" once the
        worker has printed too much.
        """
        if self._left <= 0:
            return ""
        room = self._left
        self._left -= len(chunk)
        if self._left <= 0:
            chunk = chunk[:room] + _TOO_MUCH
        *lines, self._line = (self._line + chunk).split(b"\n")
        if len(self._line) > _LONGEST_LINE:
            lines.append(self._line)
            self._line = b""
        return "".join(map(_shown, lines))

    def rest(self) -> str:
        """The last line, if it was not ended."""
        line, self._line = self._line, b""
        return _shown(line) if line else ""


def _shown(line: bytes) -> str:
    return texts.clean(line.decode(errors="replace"), _LONGEST_LINE) + "\n"
