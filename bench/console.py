"""What a command prints: readable in any encoding, and never the end of a command,
whatever its reader does.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import shutil
import sys

_STANDARD = (0, 1, 2)  # the file descriptors of stdin, stdout, stderr
_HANDLER = "batchline"
ERASED = "\r\x1b[K"  # what a terminal takes for: this line anew
# The few signs beyond ASCII that reports use; others are shown as Python escapes them.
_IN_ASCII = {
    "µ": "u",
    "×": "x",
    "·": "-",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "–": "-",
    "—": "-",
    "…": "...",
    "“": '"',
    "”": '"',
    "‖": "||",
    "²": "^2",
    "√": "sqrt ",
    "∞": "inf",
    "≈": "~",
    "ḡ": "mean g",
    "░": ".",
    "▒": ":",
    "▓": "+",
    "█": "#",
    "−": "-",
}


class _Forgiving(io.FileIO):
    """A file descriptor whose first error is kept in `error`; from then on what is
    written to it is dropped.
    """

    error: OSError | None = None

    def write(self, data) -> int | None:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)


class _Marked:
    """A stream of text of which every line that is not empty begins with `mark`."""

    def __init__(self, stream, mark: str):
        self._stream, self.mark = stream, mark
        self._is_at_start = True

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        marked = re.sub(
            f"(\n|{re.escape(ERASED)})(?=[^\n\r])", rf"\g<1>{self.mark}", text
        )
        if self._is_at_start and text[:1] not in ("", "\n", "\r"):
            marked = f"{self.mark}{marked}"
        if text:
            self._is_at_start = text.endswith(("\n", ERASED))
        self._stream.write(marked)
        return len(text)


def prepare() -> None:
    """Make stdout and stderr take any text, and go on without a reader. Leaves streams
    that a caller has put there.
    """
    codecs.register_error(_HANDLER, _in_ascii)
    _open_standard_files()
    sys.stdout = _forgiving(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _forgiving(sys.stderr, sys.__stderr__, 2)


def mark_lines(mark: str) -> None:
    """Begin every line that is printed from now on with `mark`, on stdout and on
    stderr.
    """
    sys.stdout, sys.stderr = _Marked(sys.stdout, mark), _Marked(sys.stderr, mark)


def columns() -> int:
    """How many characters a line of the terminal has room for."""
    return shutil.get_terminal_size().columns - len(getattr(sys.stderr, "mark", ""))


def takes_colour(stream) -> bool:
    """Whether colours may be written to it: to a terminal that has some, unless
    $NO_COLOR says otherwise (no-color.org).
    """
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and stream.isatty()


def why_not_printed() -> str | None:
    """Why what was printed has not all arrived, or None; a reader that has seen enough
    (head, a pager) is no reason.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Forgiving) else None
    return None if error is None or error.errno == errno.EPIPE else error.strerror


def complain(line: str) -> None:
    """One line on stderr."""
    print(f"batchline: {line}", file=sys.stderr)


def _open_standard_files() -> None:
    """What was closed by the caller (`>&-`) is /dev/null, or the next file that is
    opened would be taken for it.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one


def _forgiving(stream, original, number: int):
    if stream is not original:
        return stream
    encoding = stream.encoding if stream is not None else "utf-8"
    raw = _Forgiving(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding,
        _HANDLER,
        line_buffering=number == 2 or raw.isatty(),
    )


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wanted = error.object[error.start : error.end]
    shown = "".join(
        _IN_ASCII.get(sign) or sign.encode("ascii", "backslashreplace").decode()
        for sign in wanted
    )
    return shown, error.end
