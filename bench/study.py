"""What the batch size does to training: `bench noise`, `claims` and `advise`, and the same part of `bench run`.

A study is plain data: {"machine", "started", "profile", "noise": {"workloads", "seconds"}, "sweep"}. The sweep, of
minutes, is what `bench claims` trains; the others use the newest that is stored.
"""
from __future__ import annotations

import contextlib
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench import records
from bench.cases import PROFILES
from bench.errors import UsageError
from bench.folders import new_folder
from bench.report import training
from bench.report.fitting import TERMINAL, wrapped
from bench.stored_files import blamed_on, read_json

FILE_NAME = "study.json"
CLEAN, FAILED, INTERRUPTED = 0, 1, 130
RUNS = Path("reports", "runs")
_REPOSITORY = Path(__file__).resolve().parents[1]
_STORED = "reports/evidence/*/" + FILE_NAME


def noise_of(isolation, profile: str) -> dict:
    """The survey of every workload, each in the isolation's worker; one that fails says why in its place."""
    from bench.measure.isolation import WorkerLost
    from bench.noise.workloads import workloads

    started_s, found = time.monotonic(), {}
    for name in workloads:
        print(f"the gradient noise of {name}", file=sys.stderr)
        try:
            found[name] = isolation.call("survey", name, profile)
        except WorkerLost as lost:
            found[name] = {"failed": f"{lost} ({lost.step})"}
        except RuntimeError as error:
            found[name] = {"failed": str(error)}
    return {"workloads": found, "seconds": time.monotonic() - started_s}


def stored_sweep() -> dict | None:
    """The training sweep of the newest study that is kept as evidence; None where there is none that can be read."""
    for path in sorted(_REPOSITORY.glob(_STORED), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if sweep := json.loads(path.read_text(encoding="utf-8"))["sweep"]:
                return sweep
    return None


def noise(profile: str, device: str, out: Path) -> int:
    """`bench noise`: the survey alone, its report under `out`."""
    return _study(profile, device, out, stored_sweep)


def claims(profile: str, device: str, out: Path) -> int:
    """`bench claims`: train the sweep and take the survey; the report, with the four verdicts, goes under `out`."""
    from bench.noise.experiments import sweep

    return _study(profile, device, out, sweep.run)


def advise(folder: Path | None, profile: str, device: str, workload: str | None, batch: int | None,
           cost_cap: float | None) -> int:
    """`bench advise`: the batch size for each workload, from a stored run or study, or else from a new survey."""
    if cost_cap is not None and cost_cap < 1:
        raise UsageError(f"no batch uses fewer examples than the least: the cap must be 1 or more, and is {cost_cap:g}")
    if folder:
        path, noise = _stored_noise(folder)
        with blamed_on(path):
            return _print_advice(noise, workload, batch, cost_cap)
    return _print_advice(_measured(profile, _resolved(profile, device))["noise"], workload, batch, cost_cap)


def _print_advice(noise: Mapping, workload: str | None, batch: int | None, cost_cap: float | None) -> int:
    names = [name for name, one in noise["workloads"].items() if "failed" not in one and workload in (None, name)]
    if not names:
        raise UsageError(f"no noise of {workload or 'any workload'} there: it has {', '.join(noise['workloads'])}")
    for name in names:
        chosen = noise["workloads"][name]
        print(f"{name}: {chosen['title']}\n\n{training.advice(chosen, TERMINAL, batch, cost_cap)}\n")
    return CLEAN


def _study(profile: str, device: str, out: Path, sweep) -> int:
    from bench.measure import environment

    device = _resolved(profile, device)
    folder = new_folder(out, environment.machine(device)["device_name"])
    interrupted = False
    try:
        study = _measured(profile, device)
        try:
            study["sweep"] = sweep()
        except KeyboardInterrupt:  # the survey is kept, beside the newest sweep that is stored
            study["sweep"], interrupted = stored_sweep(), True
        _write_or_rescue(study, folder)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only succeeds where nothing was stored
    failed = any("failed" in workload for workload in study["noise"]["workloads"].values())
    return INTERRUPTED if interrupted else FAILED if failed else CLEAN


def _write_or_rescue(study: Mapping, folder: Path) -> None:
    """Write the study; if the folder fails by now, keep what was measured elsewhere and say where."""
    try:
        write(study, folder)
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="batchline-"))
        _store(study, rescue)
        raise UsageError(f"can't write to {folder} any more ({error.strerror}): what was measured is in {rescue}, and "
                         f"`python -m bench advise --run {rescue}` reads it") from error


def _measured(profile: str, device: str) -> dict:
    from bench.measure import environment
    from bench.measure.isolation import Isolation

    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with contextlib.closing(Isolation(device, PROFILES[profile].deadline_s)) as isolation:
        return {"machine": environment.machine(device), "started": started, "profile": profile,
                "noise": noise_of(isolation, profile)}


def _resolved(profile: str, device: str) -> str:
    from bench.measure import environment

    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}: use {', '.join(PROFILES)}")
    try:
        return environment.resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error


def write(study: Mapping, folder: Path) -> None:
    """Store the study and write its report beside it; print the answers."""
    _store(study, folder)
    parts = study["noise"], study["sweep"], study["machine"]
    figures = training.draw(study["noise"], study["sweep"], folder)
    title = (f"# Batchline: what the batch size does to training, on {study['machine']['device_name']}, "
             f"{study['started'][:10]}")
    measured = (f"The noise was measured in {study['noise']['seconds']:.0f} s, profile {study['profile']}, begun "
                f"{study['started']}.")
    text = [title, measured, *training.markdown(*parts, figures)]
    (folder / "README.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join("\n".join(map(wrapped, part.splitlines())) for part in training.terminal(*parts)))
    print(f"report: {folder / 'README.md'}")


def _store(study: Mapping, folder: Path) -> None:
    text = json.dumps(study, separators=(",", ":"), ensure_ascii=False)
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def _stored_noise(folder: Path) -> tuple[Path, Mapping]:
    """The file that has the noise, of a study or of a run, and the noise."""
    path = folder / FILE_NAME
    if path.exists():
        try:
            document = read_json(path)
        except OSError as error:
            raise UsageError(f"can't read {path} ({error.strerror})") from error
        with blamed_on(path):
            return path, document["noise"]
    run = records.load(folder)
    with blamed_on(records.path_in(folder)):
        noise = run.about.get("noise")
    if not noise:
        raise UsageError(f"{folder} has no gradient noise in it: a run of all cases has, or `make noise`")
    return records.path_in(folder), noise
