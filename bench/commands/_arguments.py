"""The options that several commands share, and the kinds of numbers that they take."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from pathlib import Path

from batchline.bench.folders import HISTORY, RUNS

PROFILES = ("smoke", "quick", "full", "evidence")  # of bench.cases, which imports torch
DEVICES = ("auto", "cpu", "cuda", "stand-in")


def positive(text: str) -> float:
    """A finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def count(text: str) -> int:
    """A whole number of 1 or more."""
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """--profile and --device: which cases there are to choose from."""
    parser.add_argument(
        "--profile",
        default="quick",
        help="smoke, quick (default), full, or evidence: a fixed list of about 400 "
        "cases over all ops",
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (default: cuda where there is a GPU), cpu, cuda, or stand-in: a "
        "made-up GPU, to go the whole way without one",
    )


def add_selection(
    parser: argparse.ArgumentParser,
    what: str = "only cases whose id matches, as in pytest -k",
) -> None:
    """-k: an expression of pytest's -k, over the case ids."""
    parser.add_argument("-k", default="", metavar="EXPRESSION", help=what)


def add_out(parser: argparse.ArgumentParser, whose: str = "the run's") -> None:
    """--out: the folder in which a dated folder is made."""
    parser.add_argument(
        "--out",
        type=folder,
        metavar="FOLDER",
        help=f"where {whose} own, dated folder is made (default: {RUNS}, of ops of "
        "another repository .batchline/runs in that)",
    )


def add_ops(parser: argparse.ArgumentParser) -> None:
    """--ops: whose ops are measured. Every command that takes cases or variants has it."""
    parser.add_argument(
        "--ops",
        action="append",
        metavar="FOLDER",
        help="the ops in this folder, in place of Batchline's own; may be given several "
        "times, and `batchline` names Batchline's own (default: what pyproject.toml or "
        "setup.cfg says)",
    )


def add_into(parser: argparse.ArgumentParser, what: str) -> None:
    """--into: the very folder that files are written into."""
    parser.add_argument("--into", type=folder, metavar="FOLDER", help=what)


def add_history(parser: argparse.ArgumentParser, what: str) -> None:
    """--history: the folder of the machines' histories."""
    parser.add_argument(
        "--history",
        type=folder,
        metavar="FOLDER",
        help=f"{what} (default: {HISTORY}, or .batchline/history)",
    )


def add_run(parser: argparse.ArgumentParser, what: str) -> None:
    """--run: the folder of a stored run."""
    parser.add_argument("--run", type=folder, metavar="RUN", help=what)


def new_file(text: str) -> Path:
    """A file to write, in a folder that is there: known before anything is measured."""
    path = Path(text)
    parent = path.absolute().parent
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: name a file")
    if not parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"can't write to {parent}")
    return path


def folder(text: str) -> Path | None:
    """A folder; None for an empty text, as a setting of make that is not set."""
    return Path(text) if text else None
