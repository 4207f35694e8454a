"""Another revision of the repository, checked out into a folder of its own for as long
as it is needed.

It is written through an index of its own and is no worktree of the repository: nothing
of the repository changes, a checkout that can't be written to has a base too, and there
is nothing to prune.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batchline import own_ops, places
from batchline.bench.errors import UsageError
from batchline.bench.git import git, is_shallow, last_line, why_not_readable

_REPOSITORY = places.CODE
_PREFIX = "batchline-base-"
_LOCK = "in-use"
_SUBMODULE = "160000"  # git's mode of one
_YOUNG_S = 60  # a folder that has just been made may not be locked yet


@dataclass(frozen=True)
class BaseTree:
    """The repository's folder as it is at `commit`, in `folder`; `name` is how the
    revision was asked for.
    """

    name: str
    commit: str
    folder: Path


@contextlib.contextmanager
def checked_out(revision: str, repository: Path = _REPOSITORY) -> Iterator[BaseTree]:
    """The revision in a folder of its own, removed again whatever happens.

    Raises:
        UsageError: if git reads no repository there, or it has no such revision, or
        none with the kernels that are measured.
    """
    commit = commit_of(revision, repository)
    _remove_left_behind()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with open(folder / _LOCK, "w") as lock:
            _lock_file(lock)
            tree = folder / "tree"
            tree.mkdir()
            _check_out(repository, commit, tree, folder / "index")
            within = tree / git(repository, "rev-parse", "--show-prefix").stdout.strip()
            _require_kernels(within, revision)
            yield BaseTree(revision, commit, within)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_kernels(tree: Path, revision: str) -> None:
    """Raise UsageError if the revision has nothing that can be measured."""
    if own_ops.repository():
        lacking = [one for one in own_ops.folders_in(tree) if not one.is_dir()]
        if lacking:
            raise UsageError(
                f"the revision {revision!r} has no ops in "
                f"{lacking[0].relative_to(tree).as_posix()}/ to compare with: name a "
                "later one with --base"
            )
        return
    if not (tree / "kernels" / "__init__.py").exists():
        raise UsageError(
            f"the revision {revision!r} has no kernels to compare with: name another with BASE="
        )
    if not (tree / "batchline" / "__init__.py").exists():
        raise UsageError(
            f"the revision {revision!r} is of before the packages were called batchline, and its "
            "kernels can't be measured beside these: name a later one with BASE="
        )


def _lock_file(file, wait: bool = True) -> None:
    """Raises BlockingIOError where another process has it and this one does not wait."""
    import fcntl  # not on Windows, where `batchline compare` reads this file too

    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def commit_of(revision: str, repository: Path = _REPOSITORY) -> str:
    """The full hash of a revision's commit.

    Raises:
        UsageError: if git reads no repository there, or it has no such revision.
    """
    if not revision:
        raise UsageError(
            "say what to compare with: make regress BASE=<revision>, for instance BASE=main"
        )
    if repository == places.CODE and not places.IS_CHECKOUT:
        raise UsageError(
            "there is no base to compare with: Batchline is installed as a package here, and two "
            "revisions are compared in a checkout of it"
        )
    try:
        done = git(
            repository,
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            f"{revision}^{{commit}}",
        )
    except OSError as error:
        raise UsageError(
            f"can't run git ({error.strerror}): a base is checked out with it"
        ) from error
    if done.returncode == 0:
        return done.stdout.strip()
    if why := why_not_readable(repository):
        raise UsageError(f"there is no base to compare with: {why}")
    if is_shallow(repository):
        raise UsageError(
            f"git knows no revision {revision!r}, and this clone is shallow: get the whole history with "
            "`git fetch --unshallow`, in a workflow with `fetch-depth: 0` for actions/checkout"
        )
    raise UsageError(
        f"git knows no revision {revision!r}: fetch it first, or name another"
    )


def _check_out(repository: Path, commit: str, tree: Path, index: Path) -> None:
    """Write a commit's files, and those of its submodules, into an empty folder."""
    # With --recurse-submodules, which a user's configuration can ask for, the
    # submodules' own trees would be moved.
    done = git(
        repository,
        "-c",
        "core.splitIndex=false",
        f"--work-tree={tree}",
        "read-tree",
        "--reset",
        "-u",
        "--no-recurse-submodules",
        commit,
        environment={"GIT_INDEX_FILE": str(index)},
    )
    if done.returncode:
        raise UsageError(
            f"can't check {commit[:9]} out beside the working tree: {last_line(done.stderr)}"
        )
    top = Path(
        git(repository, "rev-parse", "--show-toplevel").stdout.strip() or repository
    )
    for row in git(top, "ls-tree", "-r", "-z", "--full-tree", commit).stdout.split(
        "\0"
    ):
        facts, _, path = row.partition("\t")
        if (
            facts.startswith(_SUBMODULE) and (top / path / ".git").exists()
        ):  # else the working tree lacks it, too
            _copy_submodule(top / path, facts.split()[2], tree / path)


def _copy_submodule(submodule: Path, commit: str, into: Path) -> None:
    """Write what a submodule has at a commit; without it, kernels that need it would
    fail at the base alone.
    """
    into.mkdir(parents=True, exist_ok=True)
    packed = into.parent / f"{into.name}.tar"
    done = git(submodule, "archive", "--format=tar", f"--output={packed}", commit)
    if done.returncode:
        raise UsageError(
            f"the base has the submodule {submodule} at {commit[:9]}, and it can't be had there "
            f"({last_line(done.stderr)}): `git -C {submodule} fetch`"
        )
    with tarfile.open(packed) as files:
        files.extractall(into, filter="tar")
    packed.unlink()


def _remove_left_behind() -> None:
    """What a run that was killed has left: folders of ours that no process holds any
    more.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    if time.time() - folder.stat().st_mtime < _YOUNG_S:
        return False
    with open(folder / _LOCK, "a") as lock:
        try:
            _lock_file(lock, wait=False)
        except BlockingIOError:
            return False
    return True
