"""What the batch size does to training: `bench noise`, `claims` and `advise`, and the
same part of `bench run`.

A study (bench.store.records.Study) has the noise and a sweep. The sweep, of minutes, is
what `bench claims` trains; the others use the newest that is stored.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from batchline import places
from batchline.bench import publishing, report, texts
from batchline.bench.cases import PROFILES
from batchline.bench.errors import UsageError
from batchline.bench.folders import new_folder, remove_if_empty
from batchline.bench.report.render.terminal import render_parts
from batchline.bench.report.sections.advisor import advise_on
from batchline.bench.stopping import put_off
from batchline.bench.store import files, run_json
from batchline.bench.store.files import blamed_on, stored_below
from batchline.bench.store.records import Noise, Study
from batchline.bench.verdicts.across_runs import why_made_up

CLEAN, FAILED, NOT_MEASURED, INTERRUPTED = 0, 1, 3, 130
RUNS = Path("reports", "runs")
_EVIDENCE = places.EVIDENCE
_SURVEY = "batchline.bench.noise.experiments.survey:survey"


def surveys(isolation, profile: str) -> Iterator[dict]:
    """The survey of the workloads, each in the isolation's worker, as far as it is
    after each of them.

    A workload that fails says why in its place.
    """
    from batchline.bench.measure.worker.isolation import WorkerLost
    from batchline.bench.noise.workloads import workloads

    started_s, found = time.monotonic(), {}
    for name in workloads:
        print(f"the gradient noise of {name}", file=sys.stderr)
        try:
            found[name] = isolation.call("experiment", _SURVEY, name, profile)
        except WorkerLost as lost:
            found[name] = {"failed": f"{lost} ({lost.step})"}
        except RuntimeError as error:
            found[name] = {"failed": texts.clean_line(error)}
        yield {"workloads": dict(found), "seconds": time.monotonic() - started_s}


def stored_sweep() -> Mapping | None:
    """The training sweep of the newest study that is kept as evidence; None where there
    is none that can be read.
    """
    for path in reversed(stored_below(_EVIDENCE, run_json.STUDY_FILE_NAME)):
        with contextlib.suppress(OSError, ValueError):
            if sweep := run_json.load_study(path.parent).sweep:
                return sweep
    return None


def noise(profile: str, device: str, out: Path) -> int:
    """`bench noise`: the survey alone, its report under `out`."""
    return _study(profile, device, out, stored_sweep)


def claims(profile: str, device: str, out: Path) -> int:
    """`bench claims`: train the sweep and take the survey; the report, with the four
    verdicts, goes under `out`.
    """
    from batchline.bench.measure import stand_in
    from batchline.bench.noise.experiments import sweep

    grid = sweep.SMALL if stand_in.is_on() else sweep.Grid()
    return _study(profile, device, out, functools.partial(sweep.run, grid=grid))


def advise(
    folder: Path | None,
    profile: str,
    device: str,
    workload: str | None,
    batch: int | None,
    cost_cap: float | None,
) -> int:
    """`bench advise`: the batch size for each workload, from a stored run or study, or
    else from a new survey.

    Returns 3 where no workload's steps could be timed.
    """
    if cost_cap is not None and cost_cap < 1:
        raise UsageError(
            f"no batch uses fewer examples than the least: the cap must be 1 or more, and is {cost_cap:g}"
        )
    if folder:
        path, noise, machine = _stored_noise(folder)
        with blamed_on(path):
            if made_up := why_made_up(machine):
                print(made_up)
            return _print_advice(noise, workload, batch, cost_cap)
    _require_workload(workload)
    measured = _measured(profile, _resolved(profile, device))
    code = _print_advice(measured.noise, workload, batch, cost_cap)
    return INTERRUPTED if measured.partial else code


def _require_workload(name: str | None) -> None:
    """Raise UsageError before minutes of measuring, if there is no such workload."""
    from batchline.bench.noise.workloads import workloads

    if name not in (None, *workloads):
        raise UsageError(
            f"no workload is called {name!r}: use {' or '.join(workloads)}"
        )


def _print_advice(
    noise: Mapping, workload: str | None, batch: int | None, cost_cap: float | None
) -> int:
    names = [
        name
        for name, one in noise["workloads"].items()
        if "failed" not in one and workload in (None, name)
    ]
    if not names:
        raise UsageError(
            f"no noise of {workload or 'any workload'} there: it has {', '.join(noise['workloads'])}"
        )
    for name in names:
        chosen = noise["workloads"][name]
        if chosen.get("why_not_timed"):
            print(
                f"batchline: no advice for {name}: its steps could not be timed: {chosen['why_not_timed']}",
                file=sys.stderr,
            )
            continue
        print(
            f"{name}: {chosen['title']}\n\n{render_parts(advise_on(chosen, batch, cost_cap))}\n"
        )
    advised = any(not noise["workloads"][name].get("why_not_timed") for name in names)
    return CLEAN if advised else NOT_MEASURED


def _study(profile: str, device: str, out: Path, sweep) -> int:
    from batchline.bench.measure.machine import environment

    device = _resolved(profile, device)
    folder = new_folder(out, environment.machine(device)["device_name"])
    try:
        study = _measured(profile, device)
        if study.partial:
            study = replace(study, sweep=stored_sweep())
        else:
            try:
                study = replace(study, sweep=sweep())
            except (
                KeyboardInterrupt
            ):  # the survey is kept, beside the newest sweep that is stored
                study = replace(study, sweep=stored_sweep(), partial=True)
        shown = write(study, folder)
    finally:
        remove_if_empty(folder)
    if study.partial:
        return INTERRUPTED
    failed = any("failed" in workload for workload in study.noise.workloads.values())
    return FAILED if failed or not shown else CLEAN


def _measured(profile: str, device: str) -> Study:
    """A study without its sweep; `partial` where Ctrl-C has left workloads out.

    Raises:
        KeyboardInterrupt: before the first workload is done.
    """
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


def _resolved(profile: str, device: str) -> str:
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


def _stored_noise(folder: Path) -> tuple[Path, Mapping, Mapping]:
    """The file that has the noise, of a study or of a run, the noise, and the machine."""
    path = run_json.study_path_in(folder)
    if path.exists():
        study = run_json.load_study(folder)
        return path, study.noise, study.machine
    run = run_json.load(folder)
    if not run.noise:
        raise UsageError(
            f"{folder} has no gradient noise in it: a run of all cases has, or `make noise`"
        )
    return run_json.path_in(folder), run.noise, run.machine
