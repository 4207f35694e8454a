"""compute-sanitizer over every Triton and Numba kernel, each in a process of its own on
one small probe.

`python -m batchline.bench.measure.sanitizer FILE` writes {"rows": [Row]} anew after
each of them; without the tool {"why_not": line}.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from batchline.bench import catalogue
from batchline.bench.store.files import write_whole
from batchline.bench.texts import clean_line
from batchline.kernels.backends import INTERPRETED_BACKENDS

RISKIEST = (
    "warp_specialized",
    "ping_pong",
    "gluon_cluster",
    "gluon_fused",
    "gluon_tcgen05",
    "gluon_pair",
    "block_scaled",
    "persistent",
    "mma",
    "one_read",
    "whole_words",
    "one_launch",
)
"""Parts of the names of the variants that are tried first where time may run out: a
compiler or a chip breaks their code soonest. None of these features is shown by an
interpreter: warps with roles of their own and their barriers, tensor memory access,
tensor-core fragments, one pass that keeps what it read, loads of 16 bytes, a program
that goes on with what the others wrote."""
TOOL = "compute-sanitizer"
CHECKS = ("memcheck", "racecheck")
CLEAN, ERRORS, NOT_RUN = "clean", "errors", "not run"
_FOUND = 86  # the exit code that the tool is told to give for errors of its own kind
_LIMIT_S = 100.0
_MOST_PROCESSES = 8
_COUNT = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


@dataclass(frozen=True)
class Row:
    """What one check says of one variant: CLEAN, ERRORS with their number, or NOT_RUN;
    `line` is the first, or why.
    """

    variant: str
    check: str
    result: str
    line: str
    errors: int = 0
    seconds: float = 0.0


def risk_rank(name: str) -> int:
    """The place of a variant's name among RISKIEST, 0 for the riskiest; behind them all
    for any other.
    """
    return next(
        (place for place, part in enumerate(RISKIEST) if part in name), len(RISKIEST)
    )


def check_all(path: Path) -> None:
    """Check every variant, the riskiest first, several at a time, each row into `path`
    as it is there.
    """
    tool = shutil.which(TOOL)
    if tool is None:
        write_whole(
            path,
            json.dumps(
                {"why_not": f"{TOOL} is not installed (the CUDA toolkit has it)"}
            ),
        )
        return
    rows: list[Row] = []
    with ThreadPoolExecutor(min(_MOST_PROCESSES, os.cpu_count() or 1)) as pool:
        for done in as_completed([pool.submit(_checked, tool, *job) for job in jobs()]):
            rows.append(done.result())
            print(
                f"{rows[-1].check} {rows[-1].variant}: {rows[-1].result} {rows[-1].line}",
                file=sys.stderr,
            )
            write_whole(
                path, json.dumps({"rows": [asdict(row) for row in rows]}, indent=1)
            )


def jobs() -> list[tuple[str, str]]:
    """(variant, check) of all that are to be checked, the riskiest first."""
    variants = [
        variant
        for variant in catalogue.read().variants
        if variant.backend in INTERPRETED_BACKENDS and not variant.broken
    ]
    variants.sort(key=lambda variant: risk_rank(variant.name))
    return [(variant.id, check) for variant in variants for check in CHECKS]


def _checked(tool: str, variant: str, check: str) -> Row:
    started_s = time.monotonic()
    command = [
        tool,
        "--tool",
        check,
        "--error-exitcode",
        str(_FOUND),
        "--target-processes",
        "application-only",
        sys.executable,
        "-m",
        "batchline.bench.measure.worker.probe_once",
        variant,
    ]
    # torch's own allocator hands out parts of one allocation, within which memcheck
    # sees no bounds.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        code, printed = _printed(command, environment)
    except subprocess.TimeoutExpired:
        return Row(
            variant, check, NOT_RUN, f"not done after {_LIMIT_S:.0f} s", 0, _LIMIT_S
        )
    result = read(code, printed.splitlines())
    return Row(variant, check, *result, round(time.monotonic() - started_s, 1))


def _printed(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code and what was printed; what the tool has started ends with it, in
    time or not.

    Raises:
        subprocess.TimeoutExpired: if it is not done after _LIMIT_S.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=_LIMIT_S)
        return process.returncode, printed
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read(code: int, lines: Sequence[str]) -> tuple[str, str, int]:
    """The result, the line and the number of errors, from the tool's exit code and what
    it printed.
    """
    own = list(_own(lines))
    others = [
        line for line in lines if line.strip() and not line.startswith("=========")
    ]
    last = clean_line(others[-1]) if others else f"exit code {code}"
    counted = [
        int(next(filter(None, match.groups())))
        for line in own
        if (match := _COUNT.search(line))
    ]
    if code == _FOUND or any(counted):
        return ERRORS, _first(own), max(counted, default=1)
    if code == 0 and counted:
        return CLEAN, last, 0
    return NOT_RUN, last if code else f"{TOOL} has printed no summary: {last}", 0


def _own(lines: Sequence[str]) -> Iterator[str]:
    """What the tool printed, without its mark."""
    for line in lines:
        if line.startswith("========="):
            yield line.strip("= ").strip()


def _first(own: Sequence[str]) -> str:
    """The first line of what it found, behind the line in which it names itself."""
    found = [
        line
        for line in own
        if line and not line.startswith("COMPUTE-SANITIZER") and not _COUNT.search(line)
    ]
    return clean_line(found[0]) if found else "it does not say what"


if __name__ == "__main__":
    check_all(Path(sys.argv[1]))
