"""Text that others' code has a say in (ids, failures), made safe for the terminal,
Markdown and GitHub's commands.
"""

from __future__ import annotations

import re
import textwrap

from batchline.bench.texts import one_line, printable

# An underscore inside a word is no markup, and ids are full of them.
_MARKUP = re.compile(r"[\\`*\[\]|~#@$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# Where GitHub's runner looks for commands in what a step prints (actions/runner,
# ActionCommand.cs).
_COMMAND = re.compile(r"^(\s*)(?=::)", re.MULTILINE)
_OLD_COMMAND = "##["
_CODE = re.compile(r"((?<![\\`])`[^`]+`(?!`))")
# An HTML element or an autolink; what makes a link of what is in []; a backtick or \
# that would move where code is.
_ELEMENT_OR_LINK = re.compile(r"[<`\\]|(?<=\])[(\[:]")


def markdown(text: str) -> str:
    """One line that GitHub's Markdown shows as it is, also in a table's cell: no
    markup, no HTML, no mention.
    """
    html = (
        one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    return _MARKUP.sub(lambda match: f"&#{ord(match.group())};", html)


def without_elements(text: str) -> str:
    """One line that keeps its `code` and **stress** as Markdown, and is no HTML, and no
    link or picture that says something else than its address.
    """
    parts = _CODE.split(one_line(text))
    parts[::2] = [
        _ELEMENT_OR_LINK.sub(lambda match: f"&#{ord(match.group())};", part)
        for part in parts[::2]
    ]
    return "".join(parts)


def wrapped(text: str, columns: int, indent: str = "") -> str:
    """The text as lines of at most `columns` characters, none of which GitHub's runner
    takes for a command.
    """
    lines = textwrap.fill(
        one_line(text).replace(_OLD_COMMAND, "## ["),
        columns - 1,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )
    return _COMMAND.sub(r"\1\\", lines)


def workflow_data(text: str) -> str:
    """The message of a GitHub workflow command, as actions/toolkit's command.ts escapes
    it.
    """
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def workflow_property(text: str) -> str:
    """A property of a GitHub workflow command (`title=`), as actions/toolkit's
    command.ts escapes it.
    """
    return workflow_data(text).replace(":", "%3A").replace(",", "%2C")
