"""The base beside the working tree: its own files, nothing left behind, and one clear line where there is none."""
import subprocess

import pytest

from bench.errors import UsageError
from bench.regress import base_tree


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", folder, *arguments], check=True,
                       capture_output=True)

    git("init", "-q")
    for text in ("first", "second"):
        (folder / "file").write_text(text)
        git("add", ".")
        git("commit", "-qm", text)
    return folder


def worktrees(repository):
    done = subprocess.run(["git", "-C", repository, "worktree", "list"], capture_output=True, text=True)
    return done.stdout.splitlines()


def test_the_base_is_checked_out_and_removed(repository):
    (repository / "file").write_text("uncommitted")
    with base_tree.checked_out("HEAD~1", repository) as base:
        assert (base.folder / "file").read_text() == "first" and len(base.commit) == 40 and base.name == "HEAD~1"
        assert (repository / "file").read_text() == "uncommitted"
    assert not base.folder.parent.exists() and len(worktrees(repository)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_by_an_interrupted_run(repository, error):
    with pytest.raises(error), base_tree.checked_out("HEAD", repository) as base:
        raise error
    assert not base.folder.parent.exists() and len(worktrees(repository)) == 1


def test_what_a_killed_run_has_left_is_removed_by_the_next(repository, tmp_path):
    left = tmp_path / f"{base_tree._PREFIX}{2 ** 22 + 1}-x"  # no process has that number
    left.mkdir()
    subprocess.run(["git", "-C", repository, "worktree", "add", "-q", "--detach", left / "tree"], check=True)
    with base_tree.checked_out("HEAD", repository):
        assert not left.exists() and len(worktrees(repository)) == 2


@pytest.mark.parametrize("revision, words", [
    ("", "BASE=<revision>"), ("no-such", "git knows no revision 'no-such'"), ("--help", "git knows no revision")])
def test_an_unknown_revision_is_one_line(repository, revision, words):
    with pytest.raises(UsageError, match=words), base_tree.checked_out(revision, repository):
        pass


def test_outside_a_repository_there_is_no_base(tmp_path):
    with pytest.raises(UsageError, match="not a git repository"), base_tree.checked_out("main", tmp_path):
        pass
