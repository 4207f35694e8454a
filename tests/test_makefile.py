"""make's side: help, settings, and non-zero exits."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from batchline.bench import commands
from batchline.kernels import backends

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = ("OUT", "RUN", "K", "BASE", "BUDGET", "HISTORY", "PROFILE", "DEVICE")


def make(*arguments):
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_bare_make_prints_help():
    done = make()
    assert done.returncode == 0
    for words in (
        "make bench",
        "make bench-peers",
        "make test",
        "make codegen",
        "make regress",
        "PROFILE=smoke|quick|full",
        "DEVICE=auto|cpu|cuda",
        "K=",
        "VENV=",
        "-m batchline --help",
    ):
        assert words in done.stdout


def test_what_is_a_command_is_no_target_too():
    text = (REPOSITORY / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(targets.split()) & set(commands.names()) == {
        "codegen",
        "coverage",
        "regress",
        "report",
    }
    shown = make().stdout
    for name in commands.names():
        assert name in targets.split() or f"make {name}" not in shown


@pytest.mark.parametrize(
    "setting, pins", [("", False), ("0", False), ("no", False), ("1", True)]
)
def test_a_switch_that_is_0_is_off(setting, pins):
    done = make("-n", "codegen", f"PIN={setting}", "VENV=", "PYTHON=python3")
    assert ("--pin" in done.stdout) is pins


def test_each_setting_is_one_option_wherever_it_is_taken():
    meant = {}
    for target in ("bench", "bench-peers", "regress", "codegen", "report"):
        settings = [f"{name}=value-of-{name}" for name in SETTINGS]
        printed = make("-n", target, *settings, "VENV=", "PYTHON=python3").stdout
        words = shlex.split(printed.replace("\\\n", " ").splitlines()[-1])
        for before, word in zip(words, words[1:]):
            if match := re.fullmatch("(.*)value-of-(.*)", word):
                meant.setdefault(match[2], set()).add(match[1] or before)
    assert all(len(options) == 1 for options in meant.values()), meant
    assert meant["OUT"] == {"--out"} and meant["K"] == {"-k="}


@pytest.mark.commands
@pytest.mark.parametrize(
    "settings, words",
    [
        (["bench", "PROFILE=fast"], "unknown profile 'fast'"),
        pytest.param(
            ["bench", "K=nothing_matches"],
            "-k 'nothing_matches' matches",
            marks=pytest.mark.slow,
        ),
        (["report"], "say which run"),
        (["report", "RUN=nowhere"], "no run in nowhere"),
    ],
)
def test_a_wrong_setting_is_a_clear_line_and_non_zero(settings, words):
    done = make(*settings, "VENV=", f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert words in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("code", [1, 3])
def test_make_makes_2_of_every_exit_code_and_prints_it_and_the_documents_say_so(
    tmp_path, code
):
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\nexit {code}\n")
    python.chmod(0o755)
    done = make("regress", "BASE=main", "VENV=", f"PYTHON={python}")
    assert done.returncode == 2 and f"Error {code}" in done.stderr
    assert (
        "its own 2" in make().stdout
        and "its own 2" in (REPOSITORY / "README.md").read_text()
    )


def test_an_unfit_python_is_refused_before_anything_is_made(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ntest "$1" = --version && echo Python 3.8.1\nexit 1\n')
    old.chmod(0o755)
    done = make("install", f"PYTHON={old}", f"VENV={tmp_path}/env")
    assert (
        done.returncode != 0
        and "needs Python 3.11 to 3.13" in done.stdout
        and "Python 3.8.1" in done.stdout
    )
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize("chosen", ["", "helion and tiny_16"])
def test_the_peers_have_an_environment_of_their_own(tmp_path, chosen):
    environments = [f"VENV={tmp_path}/env", f"PEERS={tmp_path}/peers"]
    printed = make("-n", "bench-peers", f"K={chosen}", *environments).stdout
    (installed,) = [line for line in printed.splitlines() if "--no-deps" in line]
    python = f"{tmp_path}/peers/bin/python"
    assert f"{python} -m pip install --quiet --no-deps -r" in installed
    command = printed[printed.rindex(f"{python} -m batchline run") :]
    words = shlex.split(command.replace("\\\n", " "))
    (expression,) = [word[3:] for word in words if word.startswith("-k=")]
    assert expression == chosen or (not chosen and "helion" in expression)


def test_what_peers_are_measured_with_names_each_of_them():
    text = (REPOSITORY / "Makefile").read_text()
    (expression,) = re.findall(r"^BESIDE_PEERS := (.*)$", text, re.MULTILINE)
    words = set(re.findall(r"\w+", expression))
    assert {"bmm", "wgrad_stats", "torch", *backends.PEERS} <= words


def test_an_empty_venv_uses_python_as_it_is():
    done = make("-n", "bench", "VENV=", f"PYTHON={sys.executable}")
    assert (
        f"{sys.executable} -m batchline run --profile 'quick'" in done.stdout
        and "pip" not in done.stdout
    )


def test_a_setting_reaches_the_command_as_it_is_whatever_is_in_it():
    text = """it's "one" `two` ; three & $HOME"""
    done = make(
        "-n", "bench", f"K={text.replace('$', '$$')}", "VENV=", "PYTHON=printf %s~"
    )
    (command,) = [
        line for line in done.stdout.splitlines() if "-m batchline run" in line
    ]
    words = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True
    ).stdout.split("~")
    assert f"-k={text}" in words
