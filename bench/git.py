"""Calls of git that ask for nothing, take no lock, run no hook, and mean the repository
that they name.

Everything else of the user's environment and configuration holds: GIT_CONFIG_* (where
containers keep safe.directory), GIT_SSH_COMMAND, the filters of LFS and its
GIT_LFS_SKIP_SMUDGE.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# A hook's or a caller's own: they would name another repository or index, or read a
# path in another way.
_OF_ANOTHER_CALL = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_QUARANTINE_PATH",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_LITERAL_PATHSPECS",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
)
_QUIETLY = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
_WITHOUT_HOOKS = ("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false")


def git(
    repository: Path,
    *arguments: str,
    environment: Mapping[str, str] = {},
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess:
    """Run git in a repository; its output is text, whatever bytes it has.

    Raises:
        OSError: if git can't be run.
        subprocess.TimeoutExpired: if it took longer than `timeout_s`; it is stopped.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_ANOTHER_CALL
    }
    return subprocess.run(
        ["git", "--no-pager", *_WITHOUT_HOOKS, "-C", str(repository), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=kept | _QUIETLY | environment,
        timeout=timeout_s,
    )


def why_not_readable(repository: Path) -> str | None:
    """Why git reads no repository in a folder, and what to do, in a line; None where it
    reads one.
    """
    asked = git(repository, "rev-parse", "--git-dir")
    if asked.returncode == 0:
        return None
    advice = [
        line.strip() for line in asked.stderr.splitlines() if "safe.directory" in line
    ]
    if advice:  # the command, which git gives in every language
        return f"{repository} belongs to another user, so git does not read it: `{advice[-1]}` allows it"
    return f"{repository} is not a git repository"


def is_shallow(repository: Path) -> bool:
    return (
        git(repository, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
    )


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no reason given"
