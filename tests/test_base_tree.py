"""The base beside the working tree: its own files, a repository left alone, one clear
line where there is none.
"""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from batchline.bench.errors import UsageError
from batchline.bench.regress import base_tree


def git(folder, *arguments):
    somebody = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "protocol.file.allow=always",
    )
    done = subprocess.run(
        ["git", *somebody, "-C", folder, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def commit(folder, files={}):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one more")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where trees are made: nobody else's are among them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for name in ("batchline", "kernels"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    for text in ("first", "second"):
        commit(folder, {"file": text})
    return folder


def state(repository):
    """Every file of git's own, and when it was written."""
    return {
        path: path.stat().st_mtime_ns
        for path in (repository / ".git").rglob("*")
        if path.is_file()
    }


def test_the_base_is_checked_out_and_removed_and_the_repository_is_as_it_was(
    repository, temporary
):
    (repository / "file").write_text("uncommitted")
    before = state(repository)
    with base_tree.checked_out("HEAD~1", repository) as base:
        assert (
            (base.folder / "file").read_text() == "first"
            and len(base.commit) == 40
            and base.name == "HEAD~1"
        )
        assert (repository / "file").read_text() == "uncommitted" and state(
            repository
        ) == before
    assert state(repository) == before and not list(temporary.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_by_an_interrupted_run(repository, temporary, error):
    with pytest.raises(error), base_tree.checked_out("HEAD", repository):
        raise error
    assert not list(temporary.iterdir())


def test_a_worktree_that_the_user_has_moved_stays(repository, tmp_path):
    git(repository, "worktree", "add", "-q", "--detach", tmp_path / "mine")
    (tmp_path / "mine").rename(tmp_path / "moved")
    with base_tree.checked_out("HEAD", repository):
        pass
    git(repository, "worktree", "repair", tmp_path / "moved")
    assert str(tmp_path / "moved") in git(repository, "worktree", "list")


def test_what_a_killed_run_has_left_is_removed_and_what_another_uses_is_not(
    repository, temporary
):
    left, used, fresh = (
        temporary / f"{base_tree._PREFIX}{name}" for name in ("left", "used", "fresh")
    )
    for folder in (left, used, fresh):
        folder.mkdir()
        (folder / base_tree._LOCK).touch()
        if folder != fresh:
            os.utime(folder, (1, 1))
    with open(used / base_tree._LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with base_tree.checked_out("HEAD", repository):
            pass
        assert sorted(temporary.iterdir()) == sorted([used, fresh])


@pytest.mark.parametrize(
    "revision, words",
    [
        ("", "BASE=<revision>"),
        ("no-such", "git knows no revision 'no-such': fetch it first"),
        ("--help", "git knows no revision"),
    ],
)
def test_an_unknown_revision_is_one_line(repository, revision, words):
    with pytest.raises(UsageError, match=words), base_tree.checked_out(
        revision, repository
    ):
        pass


def test_outside_a_repository_there_is_no_base(tmp_path):
    with pytest.raises(UsageError, match="not a git repository"), base_tree.checked_out(
        "main", tmp_path
    ):
        pass


def test_a_revision_of_before_the_name_is_no_base(repository):
    git(repository, "rm", "-rq", "batchline")
    git(repository, "commit", "-qm", "no name")
    with pytest.raises(
        UsageError, match="'HEAD' is of before the packages were called batchline"
    ), base_tree.checked_out("HEAD", repository):
        pass


def test_a_revision_without_kernels_is_no_base(repository):
    git(repository, "rm", "-rq", "kernels")
    git(repository, "commit", "-qm", "no kernels")
    with pytest.raises(
        UsageError, match="'HEAD' has no kernels"
    ), base_tree.checked_out("HEAD", repository):
        pass


def test_a_folder_within_a_repository_has_its_base_there(repository):
    commit(
        repository,
        {f"vendor/suite/{name}/__init__.py": "" for name in ("batchline", "kernels")}
        | {"vendor/suite/file": "inner"},
    )
    with base_tree.checked_out("HEAD", repository / "vendor" / "suite") as base:
        assert (base.folder / "file").read_text() == "inner"


def test_a_shallow_clone_has_its_own_line(repository, tmp_path):
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repository}", "shallow")
    with pytest.raises(
        UsageError, match="shallow: .*`git fetch --unshallow`.*`fetch-depth: 0`"
    ):
        base_tree.commit_of("HEAD^1", tmp_path / "shallow")
    assert base_tree.commit_of("HEAD", tmp_path / "shallow")


def test_a_checkout_of_another_owner_has_its_own_line(repository, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own tests use it
    with pytest.raises(
        UsageError,
        match="another user.*`git config --global --add safe.directory .*repository`",
    ):
        base_tree.commit_of("HEAD", repository)
    for name, value in (("COUNT", "1"), ("KEY_0", "safe.directory"), ("VALUE_0", "*")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)  # as containers set it
    with base_tree.checked_out("HEAD~1", repository) as base:
        assert (base.folder / "file").read_text() == "first"


def test_filters_and_their_environment_hold_and_hooks_do_not_run(
    repository, monkeypatch, tmp_path
):
    """As LFS has them: what `smudge` makes of the stored file, unless a variable of the
    user's says to leave it.
    """
    commit(repository, {"data.big": "pointer", ".gitattributes": "*.big filter=lfs\n"})
    git(
        repository,
        "config",
        "filter.lfs.smudge",
        "sh -c 'test -n \"$GIT_LFS_SKIP_SMUDGE\" && cat || echo content'",
    )
    for name in ("post-checkout", "post-index-change", "reference-transaction"):
        hook = repository / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/ran\nexit 1\n")
        hook.chmod(0o755)
    with base_tree.checked_out("HEAD", repository) as base:
        assert (base.folder / "data.big").read_text() == "content\n"
    monkeypatch.setenv("GIT_LFS_SKIP_SMUDGE", "1")
    with base_tree.checked_out("HEAD", repository) as base:
        assert (base.folder / "data.big").read_text() == "pointer"
    assert not (tmp_path / "ran").exists()


def test_a_submodule_is_there_as_the_base_had_it(repository, tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    commit(library, {"header": "old"})
    git(repository, "submodule", "add", "-q", str(library), "kernels/library")
    commit(repository)
    commit(library, {"header": "new"})
    git(repository / "kernels" / "library", "pull", "-q")
    commit(repository)
    with base_tree.checked_out("HEAD~1", repository) as base:
        assert (base.folder / "kernels" / "library" / "header").read_text() == "old"
    assert (repository / "kernels" / "library" / "header").read_text() == "new"


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_a_hook_of_another_repository_does_not_change_which_one_is_meant(
    repository, tmp_path, monkeypatch, name
):
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    with base_tree.checked_out("HEAD~1", repository) as base:
        assert (base.folder / "file").read_text() == "first"
    assert not Path(tmp_path, "elsewhere").exists()
