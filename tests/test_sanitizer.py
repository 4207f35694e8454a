"""What compute-sanitizer says of each kernel is a row, whatever it says; where it is
not installed, that is a line.
"""

import sys

import pytest

from batchline.bench.commands import _evidence_parts as shown
from batchline.bench.commands._evidence_parts import Asked
from batchline.bench.measure import sanitizer
from batchline.bench.measure.sanitizer import CLEAN, ERRORS, NOT_RUN

HEAD = "========= COMPUTE-SANITIZER"
CLEAN_MEMORY = (
    f"{HEAD}\nright on ragged in float16\n========= ERROR SUMMARY: 0 errors\n"
)
BAD_MEMORY = f"""{HEAD}
========= Invalid __global__ read of size 4 bytes
=========     at kernel+0x90
wrong: on ragged
========= ERROR SUMMARY: 2 errors
"""
RACE = f"""{HEAD}
========= Error: Race reported between Write access at kernel+0x70
right on ragged in float16
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
NO_RACE = f"""{HEAD}
right on ragged in float16
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
"""


@pytest.mark.parametrize(
    "code, text, expected",
    [
        (0, CLEAN_MEMORY, (CLEAN, "right on ragged in float16", 0)),
        (0, NO_RACE, (CLEAN, "right on ragged in float16", 0)),
        (86, BAD_MEMORY, (ERRORS, "Invalid __global__ read of size 4 bytes", 2)),
        (
            0,
            RACE,
            (ERRORS, "Error: Race reported between Write access at kernel+0x70", 1),
        ),
        (
            1,
            f"{HEAD}\nwrong: on ragged: off\n========= ERROR SUMMARY: 0 errors\n",
            (NOT_RUN, "wrong: on ragged: off", 0),
        ),
        (3, "it takes no probe\n", (NOT_RUN, "it takes no probe", 0)),
        (0, "right\n", (NOT_RUN, "compute-sanitizer has printed no summary: right", 0)),
        (127, "", (NOT_RUN, "exit code 127", 0)),
    ],
)
def test_what_the_tool_says_is_a_row(code, text, expected):
    assert sanitizer.read(code, text.splitlines()) == expected


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(
        sanitizer,
        "jobs",
        lambda: [("bmm/triton_naive", check) for check in sanitizer.CHECKS],
    )


def test_each_variant_is_checked_by_each_check_and_shown(tmp_path, monkeypatch, two):
    tool = tmp_path / sanitizer.TOOL
    tool.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "assert os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] and sys.argv[-1] == 'bmm/triton_naive'\n"
        f"bad = sys.argv[2] == 'memcheck'\nprint({BAD_MEMORY!r} if bad else {NO_RACE!r})\n"
        "sys.exit(int(sys.argv[sys.argv.index('--error-exitcode') + 1]) if bad else 0)\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    sanitizer.check_all(tmp_path / shown.SANITIZER)
    text = shown.show_sanitizer(Asked(tmp_path, tmp_path, "cuda", "")).text
    assert "2 checks: 1 errors, 1 clean" in text
    assert [line.split("|")[3].strip() for line in text.splitlines()[-2:]] == [
        "2 errors",
        "clean",
    ]


def test_where_it_is_not_installed_that_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    sanitizer.check_all(tmp_path / shown.SANITIZER)
    text = shown.show_sanitizer(Asked(tmp_path, tmp_path, "cuda", "")).text
    assert (
        text == "Not run: compute-sanitizer is not installed (the CUDA toolkit has it)."
    )


def test_one_that_hangs_is_a_row(monkeypatch, tmp_path):
    tool = tmp_path / sanitizer.TOOL
    tool.write_text(f"#!{sys.executable}\nimport time; time.sleep(60)\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer, "_LIMIT_S", 1.0)
    row = sanitizer._checked(str(tool), "bmm/triton_naive", "memcheck")
    assert (row.result, row.line) == (NOT_RUN, "not done after 1 s")


@pytest.mark.commands
def test_the_riskiest_are_first_and_every_gpu_kernel_is_there():
    jobs = sanitizer.jobs()
    assert [check for _, check in jobs[:2]] == ["memcheck", "racecheck"]
    assert "warp_specialized" in jobs[0][0] and len(jobs) == len(set(jobs)) > 30
