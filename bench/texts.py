"""Text from outside, made safe where it enters a run: error messages, docstrings, reasons
that a variant has a say in; and what somebody who mistyped a name may have meant.

What comes out is printable, can be encoded, is of bounded length, and gives no orders
to a terminal or to a CI.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

MOST = 4000  # characters of a text of several lines
MOST_IN_LINE = 500
_CUT = " … {:,} characters left out … "
_SEARCHED = 2**16  # characters of an error's message in which its cause is looked for

# Terminal sequences (ECMA-48): CSI …, OSC … BEL or ST, and those of one letter.
_ESCAPES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|\x1b[@-Z\\\\-_]"
)
# What neither XML 1.0 (section 2.2) nor a terminal can take: control characters, lone
# surrogates, U+FFFE and U+FFFF; and what turns text around (Unicode's bidirectional
# embeddings, overrides and isolates).
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_REPLACEMENT = "\ufffd"
# GitHub's runner takes a line that begins with "::name", and "##[name" anywhere
# (actions/runner, ActionCommand.cs); Azure's takes "##vso[", TeamCity's "##teamcity[".
# A long line may be broken anywhere later, so a name counts anywhere.
_GITHUB = (
    "error|warning|notice|debug|group|endgroup|add-mask|add-path|add-matcher|remove-matcher|echo|set-output|"
    "set-env|save-state|stop-commands|internal-set-repo-path"
)
_COMMAND = re.compile(
    rf":(?=:\s*(?:{_GITHUB})\b)|(?<!\S):(?=:)|##(?=\w*\[)", re.IGNORECASE
)

# First lines of compilers' messages that only say where, or that something failed.
_TRITON_PLACE = re.compile(r"at \d+:\d+:$")
_CARET = re.compile(r"\s*\^+\s*$")
_OPENING = re.compile(r"(Failed in \w+ mode pipeline .*|.* raised:|Caught \w+ in .*:)$")
_COMPILER_ERROR = re.compile(r"\b(?:error|fatal)\s*:\s")


def clean(text: object, most: int = MOST) -> str:
    """The text in printable characters that can be encoded, its lines kept; beyond
    `most` it is cut in the middle.
    """
    text = str(text)
    if len(text) <= most:
        return _safe(text)
    kept = most - len(_CUT.format(len(text)))
    head, tail = (
        _safe(text[:most])[: 2 * kept // 3],
        _safe(text[-most:])[-(kept // 3) :],
    )
    return f"{head}{_CUT.format(len(text) - len(head) - len(tail))}{tail}"


def clean_line(text: object, most: int = MOST_IN_LINE) -> str:
    """As `clean`, with every run of white space as one space."""
    return " ".join(clean(text, most).split())


def cleaned(value):
    """JSON's kinds of data with every text and every name in it `clean`; a tuple
    becomes a list.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): cleaned(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(entry) for entry in value]
    return value


def error_line(error: BaseException) -> str:
    """The error's type and what most tells of its cause, in a line.

    Usually that is the first line of its message. Compilers begin with the place or
    with the command that failed: of theirs it is the line that names the cause, or the
    error that this one was raised from.
    """
    message = message_of(error)
    lines = [
        line.rstrip() for line in _safe(message[:_SEARCHED]).split("\n") if line.strip()
    ]
    more = (
        f" (and {len(message) - _SEARCHED:,} characters more)"
        if len(message) > _SEARCHED
        else ""
    )
    cause = error.__cause__
    if lines and _TRITON_PLACE.match(lines[0]):
        lines = _behind_caret(lines)
        if not lines and cause is not None:
            return clean_line(f"{_name_of(error)}: {error_line(cause)}")
    return (
        clean_line(f"{_name_of(error)}: {_telling(lines)}", MOST_IN_LINE - len(more))
        + more
    )


def message_of(error: BaseException) -> str:
    """What the error says, as it says it; also where its own way to say it fails."""
    try:
        return str(error)
    except Exception as another:  # a __str__ of a variant's own
        return f"its message can't be had ({type(another).__name__})"


def printable(text: str) -> str:
    """The text with U+FFFD for every character that XML 1.0 forbids or that steers a
    terminal.
    """
    return _UNPRINTABLE.sub(_REPLACEMENT, text)


def one_line(text: str) -> str:
    """The printable text with every run of white space as one space."""
    return " ".join(printable(text).split())


def shortened(text: str, most: int) -> str:
    """The text as one line of at most `most` characters; a longer one has … in its
    middle, for names differ at their ends.
    """
    line = one_line(text)
    if len(line) <= most:
        return line
    kept = most - 1
    return f"{line[: kept - kept // 2]}…{line[-(kept // 2) :]}"


def _safe(text: str) -> str:
    whole_lines = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _COMMAND.sub(r"\g<0> ", printable(whole_lines))


def _name_of(error: BaseException) -> str:
    return clean_line(type(error).__name__)


def _behind_caret(lines: Sequence[str]) -> list[str]:
    """Triton's message: the place, the source down to a line with a caret, and then the
    cause, if it says one.
    """
    carets = [number for number, line in enumerate(lines) if _CARET.match(line)]
    return list(lines[carets[-1] + 1 :]) if carets else list(lines[1:])


def _telling(lines: Sequence[str]) -> str:
    rest = list(lines)
    while len(rest) > 1 and _OPENING.match(rest[0]):
        rest.pop(0)
    if not rest:
        return "no message"
    first, others = rest[0].strip(), rest[1:]
    named = next(
        (line.strip() for line in others if _COMPILER_ERROR.search(line)), None
    )
    if named:
        return f"{first}: {named}"
    return f"{first} {others[0].strip()}" if others and first.endswith(":") else first


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)": the known name that is most like this one; nothing where
    none is.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
