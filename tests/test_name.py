"""What users import and type: `batchline`, and what it hands out."""

import subprocess
import sys
from pathlib import Path

import pytest

import batchline

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.commands
def test_each_name_is_imported_when_it_is_asked_for():
    program = (
        "import sys, batchline\n"
        "before = {name for name in sys.modules if name.startswith('batchline.')}\n"
        "print(sorted(before), *(getattr(batchline, name).__name__ for name in "
        "batchline.__all__))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    names = ["['batchline.own_ops',", "'batchline.places']", "GradientNorms"]
    names += ["NoiseMeter", "Op"]
    names += ["advise", "load"]
    assert done.stdout.split() == names, done.stderr


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        batchline.nothing


def test_the_command_has_its_help():
    done = subprocess.run(
        [sys.executable, "-m", "batchline", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "python -m batchline" in done.stdout
