"""`batchline completion`: a script that lets bash or zsh complete the commands and their
options.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

from batchline.bench import commands
from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode

HELP = "a script by which bash or zsh completes commands and options"
SAMPLE = """
# bash: eval "$(batchline completion bash)"
_batchline() {
  local command=${COMP_WORDS[1]} words
"""
EXITS = {
    ExitCode.CLEAN: "the script is above",
    ExitCode.USAGE: "no such shell",
}

_BASH = """\
# bash: eval "$(batchline completion bash)"
_batchline() {{
  local words
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={names}
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  case "${{COMP_WORDS[COMP_CWORD-1]}}" in
    --profile) words={profiles} ;;
    --device) words={devices} ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _batchline batchline
"""
_ZSH = """\
# zsh: eval "$(batchline completion zsh)"
_batchline() {{
  local all
  if [ "$CURRENT" -eq 2 ]; then
    all={names}
  else
    case "${{words[2]}}" in
{cases}
    esac
  fi
  case "${{words[CURRENT-1]}}" in
    --profile) all={profiles} ;;
    --device) all={devices} ;;
  esac
  compadd -- ${{=all}}
  _files
}}
compdef _batchline batchline
"""
_SCRIPTS = {"bash": (_BASH, "words"), "zsh": (_ZSH, "all")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(_SCRIPTS))


def run(options: argparse.Namespace) -> int:
    print(script(options.shell, {name: _options(name) for name in commands.names()}))
    return ExitCode.CLEAN


def script(shell: str, options: Mapping[str, list[str]]) -> str:
    """The shell's script for these commands and their options."""
    template, variable = _SCRIPTS[shell]
    cases = [
        f"      {name}) {variable}={shlex.quote(' '.join(words))} ;;"
        for name, words in options.items()
    ]
    return template.format(
        names=shlex.quote(" ".join(options)),
        cases="\n".join(cases),
        profiles=shlex.quote(" ".join(_arguments.PROFILES)),
        devices=shlex.quote(" ".join(_arguments.DEVICES)),
    ).rstrip()


def _options(name: str) -> list[str]:
    """A command's options, and the words that it takes in a place."""
    parser = argparse.ArgumentParser()
    commands.load(name).add_arguments(parser)
    words = []
    for action in parser._actions:
        words += action.option_strings or action.choices or []
    return words
