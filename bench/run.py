"""`bench run`: plan, measure through pytest-benchmark, store, report, and say by the exit code how it went."""
from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import records, report
from bench.cases import Plan, plan
from bench.progress import Progress
from bench.records import BROKEN, MEASURED, NOT_REACHED, OURS

CLEAN, BROKEN_CASES, USAGE, NOTHING_MEASURED, INTERRUPTED = 0, 1, 2, 3, 130
_REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_FOLDER = Path("reports", "runs")
_NOT_COMPILED = ([], "the run was stopped")
_LEAST_FREE_BYTES = 64 * 2 ** 20


class UsageError(Exception):
    """One line: what was wrong with the call, and what to do."""


def run(profile: str, device: str, selection: str, folder: Path = DEFAULT_FOLDER) -> int:
    """Measure the profile's cases that match `selection` (pytest's -k), write the report under `folder`.

    Raises:
        UsageError: before anything is measured, if the call, the environment or the folder is not usable.
    """
    environment = _require_environment()
    try:
        device = environment.resolve_device(device)
        the_plan = plan(profile, device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    machine = environment.machine(device)
    run_folder = _new_folder(folder, machine["device_name"])
    try:
        started = datetime.datetime.now(datetime.timezone.utc)
        document, about, ended = _measure(the_plan, machine, selection)
        try:
            compiled = _compile_gpu_variants(the_plan, about["cases"]) if ended == CLEAN else _NOT_COMPILED
        except KeyboardInterrupt:
            compiled, ended = _NOT_COMPILED, INTERRUPTED
        about |= {
            "started": started.isoformat(timespec="seconds"),
            "seconds": (datetime.datetime.now(datetime.timezone.utc) - started).total_seconds(),
            "partial": ended != CLEAN, "selection": selection, "compiled": compiled[0], "not_compiled": compiled[1],
        }
        _store({**document, OURS: about}, run_folder)
    finally:
        with contextlib.suppress(OSError):
            run_folder.rmdir()  # only succeeds where nothing was stored
    return _exit_code(about["cases"], ended)


def _require_environment():
    """bench.measure.environment, if what it and the measuring need is installed."""
    try:
        from bench.measure import environment
    except ImportError as error:
        raise UsageError(f"{error}: install what requirements.txt lists (`make install`)") from error
    missing = environment.missing_packages()
    if missing:
        raise UsageError(f"not installed: {', '.join(missing)}; install what requirements.txt lists (`make install`)")
    return environment


def _new_folder(parent: Path, device_name: str) -> Path:
    """A folder of this run's own, made now, so that a folder that can't be written is known before the measuring."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    name = f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{slug}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < _LEAST_FREE_BYTES:
            raise UsageError(f"{parent} has {free / 2 ** 20:.0f} MiB free and a run wants {_LEAST_FREE_BYTES >> 20}: "
                             "free some, or name another folder with --out")
        for suffix in ("", *(f"-{number}" for number in range(2, 100))):
            with contextlib.suppress(FileExistsError):
                (parent / f"{name}{suffix}").mkdir()
                return parent / f"{name}{suffix}"
        raise UsageError(f"{parent}/{name} and 98 more like it exist already")
    except OSError as error:
        raise UsageError(f"can't write to {parent} ({error.strerror}): name another folder with --out") from error


def _measure(the_plan: Plan, machine: dict, selection: str) -> tuple[dict, dict, int]:
    """Run pytest over the plan; returns its document, our part of it, and CLEAN if it came to its end."""
    from bench.measure.runner import Runner
    from bench.session import Session

    progress = Progress()
    session = Session(the_plan, Runner(the_plan.profile, the_plan.device), machine, progress)
    with tempfile.TemporaryDirectory() as scratch, _no_plugins_but_ours():
        stored = Path(scratch) / "benchmark.json"
        code = pytest.main(
            [str(_REPOSITORY / "bench" / "bench_kernels.py"), "--rootdir", str(_REPOSITORY), "-k", selection,
             "-c", os.devnull, "-p", "pytest_benchmark.plugin", "-p", "no:terminal",
             "-p", "no:cacheprovider", "-W", "ignore", "--capture=no",
             "--benchmark-json", str(stored), "--benchmark-quiet", "--benchmark-disable-gc"], plugins=[session])
        progress.end()
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise UsageError(f"K={selection!r} matches none of the {len(the_plan.cases)} cases of profile "
                             f"{the_plan.profile.name}: `python -m bench list` shows them")
        if code == pytest.ExitCode.USAGE_ERROR:
            raise UsageError(f"K={selection!r} is not an expression that pytest -k understands")
        if stored.exists():
            document = json.loads(stored.read_text(encoding="utf-8"))
        else:  # pytest-benchmark writes no file when nothing was timed; the run has its rows all the same
            document = {"machine_info": {OURS: machine}, "commit_info": machine["revision"], "benchmarks": [],
                        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(), "version": ""}
    ended = {pytest.ExitCode.INTERRUPTED: INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR: BROKEN_CASES}.get(code, CLEAN)
    return document, _about(the_plan, session, selection), ended


@contextlib.contextmanager
def _no_plugins_but_ours() -> Iterator[None]:
    """Whatever pytest plugins the environment has (reordering, parallelising, timing out) stay out of the run."""
    outside = {name: os.environ.pop(name, None) for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
        os.environ.update({name: value for name, value in outside.items() if value is not None})


def _about(the_plan: Plan, session, selection: str) -> dict:
    ops = {case.op.name: case.op for case in the_plan.cases if case.id in session.outcomes}
    chosen = {case.problem[:3] for case in the_plan.cases if case.id in session.outcomes}
    return {
        "profile": the_plan.profile.name,
        "limits": dataclasses.asdict(the_plan.profile.limits[the_plan.device]),
        "signatures": {name: op.signature for name, op in ops.items()},
        "baselines": {name: op.baseline for name, op in ops.items()},
        "scenarios": {name: {scenario.name: scenario.title for scenario in op.scenarios.values()}
                      for name, op in ops.items()},
        "ideas": {case.variant.id: case.variant.idea for case in the_plan.cases if case.id in session.outcomes},
        "left_out": [problem for problem in the_plan.left_out if not selection or problem[:3] in chosen],
        "cases": [{"id": name, "status": status, "reason": reason}
                  for name, (status, reason) in session.outcomes.items()],
    }


def _compile_gpu_variants(the_plan: Plan, cases: list[dict]) -> tuple[list[dict], str | None]:
    """The static facts of the run's GPU variants, and why they are not complete, if so."""
    from bench.measure.codegen import compile_in_own_process

    print("compiling the GPU variants, then the report", file=sys.stderr)
    chosen = {case["id"] for case in cases}
    variants = dict.fromkeys(case.variant.id for case in the_plan.cases if case.id in chosen)
    return compile_in_own_process(list(variants), the_plan.profile.dtypes["cuda"])


def _store(document: dict, folder: Path) -> None:
    """Write run.json, then the report; if the folder fails by now, keep the measurements elsewhere and say where."""
    try:
        records.save(folder, document)
        the_run = records.load(folder)
        notes = report.write(the_run, folder)
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="batchline-"))
        records.save(rescue, document)
        raise UsageError(f"can't write to {folder} any more ({error.strerror}): the measurements are in {rescue}, and "
                         f"`python -m bench report {rescue}` makes the report there") from error
    print(report.terminal(the_run))
    for note in notes:
        print(note)
    print(f"report: {folder / report.FILE_NAME}")


def _exit_code(cases: list[dict], ended: int) -> int:
    statuses = {case["status"] for case in cases}
    if MEASURED not in statuses:
        return NOTHING_MEASURED
    if ended != CLEAN:
        return ended
    return BROKEN_CASES if statuses.intersection((*BROKEN, NOT_REACHED)) else CLEAN
