"""Another revision of the repository, checked out beside the working tree for as long as it is needed."""
from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError

_REPOSITORY = Path(__file__).resolve().parents[2]
_PREFIX = "batchline-base-"


@dataclass(frozen=True)
class BaseTree:
    """A checkout of `name` (as it was asked for) at `commit`, in `folder`."""

    name: str
    commit: str
    folder: Path


@contextlib.contextmanager
def checked_out(revision: str, repository: Path = _REPOSITORY) -> Iterator[BaseTree]:
    """The revision in a git worktree of its own, removed again whatever happens.

    Raises:
        UsageError: if this is no git repository, or has no such revision.
    """
    commit = commit_of(revision, repository)
    _remove_left_behind(repository)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        done = _git(repository, "worktree", "add", "--detach", "--quiet", str(folder / "tree"), commit)
        if done.returncode:
            raise UsageError(f"can't check {revision} out beside the working tree: {_line(done.stderr)}")
        yield BaseTree(revision, commit, folder / "tree")
    finally:
        _remove(repository, folder)


def commit_of(revision: str, repository: Path = _REPOSITORY) -> str:
    """The full hash of a revision's commit.

    Raises:
        UsageError: if this is no git repository, or has no such revision.
    """
    if not revision:
        raise UsageError("say what to compare with: make regress BASE=<revision>, for instance BASE=main")
    try:
        done = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except OSError as error:
        raise UsageError(f"can't run git ({error.strerror}): a base is checked out with it") from error
    if done.returncode:
        inside = _git(repository, "rev-parse", "--git-dir").returncode == 0
        raise UsageError(f"git knows no revision {revision!r}: fetch it first, or name another with BASE=" if inside
                         else f"{repository} is not a git repository, so there is no base to compare with")
    return done.stdout.strip()


def _remove_left_behind(repository: Path) -> None:
    """What a run that was killed has left: the trees of processes that are gone."""
    listed = _git(repository, "worktree", "list", "--porcelain").stdout
    for line in listed.splitlines():
        folder = Path(line.removeprefix("worktree ")).parent
        if line.startswith("worktree ") and folder.name.startswith(_PREFIX):
            pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
            if not Path("/proc", pid).exists():
                _remove(repository, folder)


def _remove(repository: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _git(repository, "worktree", "prune")


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess:
    # A hook of the caller's, or its GIT_DIR, must not change which repository this is.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, env=environment)


def _line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no reason given"
