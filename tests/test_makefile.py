"""make's side: help, settings, and non-zero exits."""
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def make(*arguments):
    return subprocess.run(["make", "--no-print-directory", *arguments], cwd=REPOSITORY, capture_output=True, text=True)


def test_bare_make_prints_help():
    done = make()
    assert done.returncode == 0
    for words in ("make bench", "make test", "make tune", "make codegen",
                  "PROFILE=smoke|quick|full", "DEVICE=auto|cpu|cuda", "K=", "VENV="):
        assert words in done.stdout


@pytest.mark.parametrize("settings, words", [
    (["bench", "PROFILE=fast"], "unknown profile 'fast'"),
    (["bench", "K=nothing_matches"], "K='nothing_matches' matches"),
    (["report"], "say which run"), (["report", "RUN=nowhere"], "no run in nowhere")])
def test_a_wrong_setting_is_a_clear_line_and_non_zero(settings, words):
    done = make(*settings, "VENV=", f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert words in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_an_unfit_python_is_refused_before_anything_is_made(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ntest "$1" = --version && echo Python 3.8.1\nexit 1\n')
    old.chmod(0o755)
    done = make("install", f"PYTHON={old}", f"VENV={tmp_path}/env")
    assert done.returncode != 0 and "needs Python 3.11 to 3.13" in done.stdout and "Python 3.8.1" in done.stdout
    assert not (tmp_path / "env").exists()


def test_an_empty_venv_uses_python_as_it_is():
    done = make("-n", "bench", "VENV=", f"PYTHON={sys.executable}")
    assert f'{sys.executable} -m bench run --profile "quick"' in done.stdout and "pip" not in done.stdout
