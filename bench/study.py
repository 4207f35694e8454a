"""What the batch size does to training: what `batchline noise`, `claims` and `advise`
measure, and the same part of `batchline run`.

A study (bench.store.records.Study) has the noise and a sweep. The sweep, of minutes, is
what `batchline claims` trains; the others use the newest that is stored.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from batchline import places
from batchline.bench import publishing, report, texts
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import new_folder, remove_if_empty
from batchline.bench.stopping import put_off
from batchline.bench.store import files, run_json
from batchline.bench.store.files import stored_below
from batchline.bench.store.records import Noise, Study

_EVIDENCE = places.EVIDENCE
_SURVEY = "batchline.bench.noise.experiments.survey:survey"


def surveys(isolation, profile: str) -> Iterator[dict]:
    """The survey of the workloads, each in the isolation's worker, as far as it is
    after each of them.

    A workload that fails says why in its place.
    """
    from batchline.bench.measure.worker.isolation import WorkerLost
    from batchline.bench.noise.workloads import workloads

    started_s, taken = time.monotonic(), {}
    for name in workloads:
        print(f"the gradient noise of {name}", file=sys.stderr)
        try:
            taken[name] = isolation.call("experiment", _SURVEY, name, profile)
        except WorkerLost as lost:
            taken[name] = {"failed": f"{lost} ({lost.step})"}
        except RuntimeError as error:
            taken[name] = {"failed": texts.clean_line(error)}
        yield {"workloads": dict(taken), "seconds": time.monotonic() - started_s}


def stored_sweep() -> Mapping | None:
    """The training sweep of the newest study that is kept as evidence; None where there
    is none that can be read.
    """
    for path in reversed(stored_below(_EVIDENCE, run_json.STUDY_FILE_NAME)):
        with contextlib.suppress(OSError, ValueError):
            if sweep := run_json.load_study(path.parent).sweep:
                return sweep
    return None


def make_study(
    profile: str, device: str, out: Path, sweep: Callable[[], Mapping | None]
) -> int:
    """Take the survey, and then the sweep that `sweep` gives; the report goes under
    `out`. Returns the exit code.
    """
    from batchline.bench.measure.machine import environment

    device = resolve_device(profile, device)
    folder = new_folder(out, environment.machine(device)["device_name"])
    try:
        study = measure_survey(profile, device)
        if study.partial:
            study = replace(study, sweep=stored_sweep())
        else:
            try:
                study = replace(study, sweep=sweep())
            except (
                KeyboardInterrupt
            ):  # the survey is kept, beside the newest sweep that is stored
                study = replace(study, sweep=stored_sweep(), partial=True)
        complete = write(study, folder)
    finally:
        remove_if_empty(folder)
    if study.partial:
        return ExitCode.STOPPED
    failed = any("failed" in workload for workload in study.noise.workloads.values())
    return ExitCode.FAULT if failed or not complete else ExitCode.CLEAN


def measure_survey(profile: str, device: str) -> Study:
    """A study without its sweep; `partial` where Ctrl-C has left workloads out.

    Raises:
        KeyboardInterrupt: before the first workload is done.
    """
    from batchline.bench.cases import PROFILES
    from batchline.bench.measure.machine import environment
    from batchline.bench.measure.worker.isolation import Isolation

    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    study = Study(
        machine=environment.machine(device),
        started=started,
        profile=profile,
        noise=Noise({}),
    )
    with contextlib.closing(
        Isolation(device, PROFILES[profile].deadline_s)
    ) as isolation:
        try:
            for so_far in surveys(isolation, profile):
                study = replace(study, noise=Noise(**so_far))
        except KeyboardInterrupt:
            if not study.noise.workloads:
                raise
            study = replace(study, partial=True)
    return study


def resolve_device(profile: str, device: str) -> str:
    """The device's name, "cpu" or "cuda".

    Raises:
        UsageError: for an unknown profile or device.
    """
    from batchline.bench.cases import PROFILES
    from batchline.bench.measure.machine import environment

    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}: use {', '.join(PROFILES)}")
    try:
        return environment.resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error


def write(study: Study, folder: Path) -> bool:
    """Store the study and write its report beside it; print the answers. Whether all of
    the report could be made.

    Where `folder` can't be written any more both go elsewhere, and a line says where.
    """
    with put_off():
        folder = files.save_or_rescue(
            lambda place: run_json.save_study(place, study), folder, "advise --run"
        )
    parts = publishing.Parts()
    drawn = parts.attempt(
        "drawing the plots",
        lambda: report.draw_training(study.noise, study.sweep, study.machine, folder),
        set(),
    )
    parts.attempt(
        "README.md",
        lambda: (folder / "README.md").write_text(
            _markdown(study, drawn), encoding="utf-8"
        ),
    )
    parts.attempt("the report on the terminal", lambda: print(_terminal(study)))
    print(f"report: {folder / 'README.md'}", flush=True)
    return parts.complete


def _markdown(study: Study, drawn: set[str]) -> str:
    title = (
        f"# Batchline: what the batch size does to training, on {study.machine['device_name']}, "
        f"{study.started[:10]}"
    )
    partial = ["> **Partial.** It was stopped before its end."] if study.partial else []
    measured = (
        f"The noise was measured in {study.noise.seconds:.0f} s, profile {study.profile}, begun "
        f"{study.started}."
    )
    text = report.training_readme(study.noise, study.sweep, study.machine, drawn)
    return "\n\n".join([title, *partial, measured, text]) + "\n"


def _terminal(study: Study) -> str:
    return report.training_on_terminal(study.noise, study.sweep, study.machine)


def stored_noise(folder: Path) -> tuple[Path, Mapping, Mapping]:
    """The file that has the noise, of a study or of a run, the noise, and the machine."""
    path = run_json.study_path_in(folder)
    if path.exists():
        study = run_json.load_study(folder)
        return path, study.noise, study.machine
    run = run_json.load(folder)
    if not run.noise:
        raise UsageError(
            f"{folder} has no gradient noise in it: a run of all cases has, or `batchline noise`"
        )
    return run_json.path_in(folder), run.noise, run.machine
