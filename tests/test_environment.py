"""The revision of a run: it neither fails nor hangs, whatever git, its hooks or the
user's settings do.
"""

import subprocess

import pytest

from batchline.bench.measure.machine import environment


@pytest.fixture
def repository(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            [
                "git",
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@b",
                "-C",
                tmp_path,
                *arguments,
            ],
            check=True,
        )

    git("init", "-q")
    (tmp_path / "file").write_text("first")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(environment, "_REPOSITORY", tmp_path)
    return tmp_path


def test_a_clean_tree_and_reports_are_not_dirty_and_a_new_file_is_whatever_the_user_has_set(
    repository,
):
    (repository / "reports").mkdir()
    (repository / "reports" / "new").touch()
    clean = environment.revision()
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    subprocess.run(
        ["git", "-C", repository, "config", "status.showUntrackedFiles", "no"],
        check=True,
    )
    (repository / "new_kernel.py").touch()
    assert environment.revision() == clean | {"dirty": True}


def test_a_monitor_of_files_that_hangs_is_not_asked(repository):
    subprocess.run(
        ["git", "-C", repository, "config", "core.fsmonitor", "sleep 60; false"],
        check=True,
    )
    assert environment.revision()["dirty"] is False


@pytest.mark.parametrize(
    "script, found",
    [
        ("exit 128", {"commit": "unknown", "dirty": None}),
        ("sleep 60", {"commit": "unknown", "dirty": None}),
        (
            'case "$*" in *status*) sleep 60;; *) echo abc;; esac',
            {"commit": "abc", "dirty": None},
        ),
    ],
)
def test_a_git_that_fails_or_hangs_costs_the_revision_alone(
    repository, monkeypatch, tmp_path, script, found
):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\n{script.replace('sleep', 'exec sleep')}\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:/bin:/usr/bin")
    monkeypatch.setattr(environment, "_GIT_S", 0.5)
    assert environment.revision() == found


def test_without_git_the_revision_is_unknown(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.revision() == {"commit": "unknown", "dirty": None}
