"""The commands: found by themselves, with help that costs no import of torch, one
meaning for each option, and a line at the end that says how it went.
"""

import argparse
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchline import __version__
from batchline.__main__ import main
from batchline.bench import cases, commands, selection
from batchline.bench.commands import _arguments, completion
from batchline.bench.errors import ExitCode, UsageError

REPOSITORY = Path(__file__).resolve().parents[1]
each_command = pytest.mark.parametrize("name", commands.names())
# What an option's help may begin with, wherever it is taken.
MEANINGS = {
    "--out": "where .* own, dated folder is made",
    "-k": ".*as in pytest -k",
    "--profile": "smoke, quick",
    "--device": "auto",
    "--run": "a stored run",
    "--history": ".*",
    "--ops": "the ops in this folder",
}


def batchline(*words):
    return subprocess.run(
        [sys.executable, "-m", "batchline", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def actions(name):
    parser = argparse.ArgumentParser()
    commands.load(name).add_arguments(parser)
    return parser._actions


@each_command
def test_a_command_says_what_it_does_prints_and_exits_with(name):
    module = commands.load(name)
    assert commands.help_line(name) == module.HELP and "\n" not in module.HELP
    assert module.SAMPLE.strip() and max(map(len, module.SAMPLE.splitlines())) <= 100
    assert set(module.EXITS) <= set(ExitCode)
    assert ExitCode.CLEAN in module.EXITS and ExitCode.USAGE in module.EXITS
    text = commands.command_parser(name, module).format_help()
    for code in module.EXITS:
        assert re.search(rf"^ +{int(code)}  ", text, re.MULTILINE)
    assert module.SAMPLE.strip().splitlines()[0].strip() in text


def test_the_file_of_a_command_is_all_there_is_to_it(tmp_path, monkeypatch):
    (tmp_path / "new_idea.py").write_text('HELP = "an idea"\n')
    (tmp_path / "_shared.py").write_text("")
    monkeypatch.setattr(commands, "_FOLDER", tmp_path)
    assert commands.names() == ["new-idea"]
    assert commands.help_line("new-idea") == "an idea"
    assert "an idea" in commands.top_parser().format_help()


def test_help_imports_neither_torch_nor_what_reports_take():
    program = """
import sys
from batchline.bench import commands
commands.top_parser().format_help()
for name in commands.names():
    commands.command_parser(name, commands.load(name)).format_help()
print(*{"torch", "scipy", "matplotlib", "pytest", "numba"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout == "\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "reports/none", "reports/none"],
        ["history", "--history", "reports/none"],
        ["report", "reports/none"],
    ],
    ids=lambda words: words[0],
)
def test_what_only_reads_runs_without_torch(words):
    program = f"""
import sys
for name in ("torch", "triton", "numba"):
    sys.modules[name] = None
from batchline.__main__ import main
sys.exit(main({words!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode in (2, 3) and "not installed" not in done.stderr
    assert "Traceback" not in done.stderr


@each_command
def test_an_option_means_the_same_wherever_it_is_taken(name):
    for action in actions(name):
        for option in action.option_strings:
            if option in MEANINGS:
                assert re.match(MEANINGS[option], action.help), (option, action.help)
        if action.metavar == "RUN":
            assert "run" in action.help


def test_the_constants_that_spare_an_import_are_those_of_the_plan():
    assert _arguments.PROFILES == tuple(cases.PROFILES)


def test_its_version_is_the_packages():
    done = batchline("--version")
    assert (done.returncode, done.stdout) == (0, f"batchline {__version__}\n")


@pytest.mark.parametrize(
    "words, said",
    [
        (["tnue"], "there is no command 'tnue' (did you mean tune?)"),
        (["xyzzy"], "there is no command 'xyzzy'\n"),
        ([], "say which command"),
        (["explain", "--rnu"], "required: case"),
    ],
)
def test_a_mistyped_command_is_2_and_the_nearest_is_named(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == ExitCode.USAGE and said in capsys.readouterr().err


def test_the_last_line_says_how_it_ended(capsys):
    assert main(["completion", "bash"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("# bash: ")
    last = printed.err.splitlines()[-1]
    assert last == "batchline completion: the script is above (0 s)"


def test_a_wrong_call_is_one_line_and_no_more(capsys):
    assert main(["explain", "bmm/nothing/tiny_4/float32/B4"]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "batchline: no stored run has the case 'bmm/nothing/tiny_4/float32/B4'"
    )


@pytest.mark.parametrize("columns", [60, 140])
def test_help_follows_the_width_of_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = commands.command_parser("run", commands.load("run")).format_help()
    own = text.partition("it prints")[0] + text.partition("exit codes:")[2]
    assert columns - 25 < max(map(len, own.splitlines())) <= columns


def _completed(*words):
    """What bash offers for the last of the words."""
    quoted = " ".join(f"'{word}'" for word in words)
    program = f"""
eval "$({sys.executable} -m batchline completion bash 2>/dev/null)"
COMP_WORDS=({quoted}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _batchline
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "words, offered",
    [
        (["batchline", "com"], ["compare", "completion"]),
        (
            ["batchline", "list", "--"],
            ["--device", "--help", "--json", "--ops", "--profile"],
        ),
        (["batchline", "run", "--profile", "q"], ["quick"]),
        (["batchline", "run", "--device", "c"], ["cpu", "cuda"]),
    ],
    ids=lambda words: words[-1],
)
def test_bash_completes_commands_options_and_values(words, offered):
    assert sorted(_completed(*words)) == offered


def test_zsh_gets_the_same_words():
    script = completion.script("zsh", {"run": ["--profile"], "list": ["-k"]})
    assert "compdef _batchline batchline" in script
    assert "all='run list'" in script and "run) all=--profile ;;" in script


@pytest.mark.commands
@pytest.mark.parametrize(
    "expression, matching",
    [("bmm and tiny_4 and B1", True), ("torch_bmm and nothing_at_all", False)],
)
def test_list_takes_an_expression_of_pytests(expression, matching):
    done = batchline("list", "--profile", "smoke", "--device", "cpu", "-k", expression)
    if not matching:
        assert done.returncode == 2 and "matches none of the" in done.stderr
        return
    ids = [line.split()[0] for line in done.stdout.splitlines()]
    assert ids and all(
        "bmm/" in case and "tiny_4" in case and "B1" in case for case in ids
    )
    assert f"{len(ids)} cases, " in done.stderr


@pytest.mark.parametrize("columns, width", [("72", 72), ("", 100), ("20", 60)])
def test_reports_follow_the_width_of_the_terminal(columns, width):
    program = (
        "from batchline.bench.report.render.terminal import COLUMNS; print(COLUMNS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": columns},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{width}\n", done.stderr


def test_a_mistyped_case_is_a_line_with_the_nearest(capsys):
    ids = ["bmm/torch_bmm/tiny_4/float32/B1", "bmm/torch_bmm/tiny_16/float32/B1"]
    with pytest.raises(UsageError) as refused:
        selection.selected(ids, "bmm/torch_bm/tiny_16/float32/B1", "of profile smoke")
    assert f"of profile smoke (did you mean {ids[1]}?): " in str(refused.value)


def test_what_every_command_with_k_takes_is_pytests():
    """Each hands its -k to bench.selection, itself or by the run that it starts."""
    for name in commands.names():
        options = [option for one in actions(name) for option in one.option_strings]
        if "-k" in options:
            source = inspect.getsource(commands.load(name))
            assert "selected(" in source or name in ("run", "evidence", "check"), name


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_of_every_command_has_a_meaning(code, monkeypatch, capsys):
    quiet = SimpleNamespace(EXITS={}, run=lambda options: code)
    monkeypatch.setattr(
        commands, "parse", lambda words: ("new", quiet, argparse.Namespace())
    )
    assert commands.execute([]) == code
    if code != ExitCode.USAGE:
        assert f"batchline new: {code.meaning} (" in capsys.readouterr().err


def test_what_could_not_be_printed_is_what_the_last_line_says():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "batchline", "completion", "bash"],
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == ExitCode.FAULT
    assert done.stderr.splitlines()[-1].startswith(
        "batchline completion: not all that it says was printed ("
    )
