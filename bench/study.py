"""What the batch size does to training: `batchline noise`, `claims` and `advise`, and the
same part of `batchline run`.

A study is plain data: {"machine", "started", "profile", "noise": {"workloads",
"seconds"}, "sweep"}. The sweep, of minutes, is what `batchline claims` trains; the others
use the newest that is stored.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from batchline.bench import publishing, records, texts
from batchline.bench.cases import PROFILES
from batchline.bench.errors import UsageError
from batchline.bench.files import write_whole
from batchline.bench.folders import new_folder, remove_if_empty
from batchline.bench.report import training
from batchline.bench.report.fitting import TERMINAL, wrapped
from batchline.bench.stopping import put_off
from batchline.bench.stored_files import blamed_on, read_json
from batchline.bench.verdicts.usable import why_made_up

FILE_NAME = "study.json"
CLEAN, FAILED, NOT_MEASURED, INTERRUPTED = 0, 1, 3, 130
RUNS = Path("reports", "runs")
_REPOSITORY = Path(__file__).resolve().parents[1]
_STORED = "reports/evidence/*/" + FILE_NAME


def surveys(isolation, profile: str) -> Iterator[dict]:
    """The survey of the workloads, each in the isolation's worker, as far as it is
    after each of them.

    A workload that fails says why in its place.
    """
    from batchline.bench.measure.isolation import WorkerLost
    from batchline.bench.noise.workloads import workloads

    started_s, found = time.monotonic(), {}
    for name in workloads:
        print(f"the gradient noise of {name}", file=sys.stderr)
        try:
            found[name] = isolation.call("survey", name, profile)
        except WorkerLost as lost:
            found[name] = {"failed": f"{lost} ({lost.step})"}
        except RuntimeError as error:
            found[name] = {"failed": texts.clean_line(error)}
        yield {"workloads": dict(found), "seconds": time.monotonic() - started_s}


def stored_sweep() -> dict | None:
    """The training sweep of the newest study that is kept as evidence; None where there
    is none that can be read.
    """
    for path in sorted(_REPOSITORY.glob(_STORED), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if sweep := json.loads(path.read_text(encoding="utf-8"))["sweep"]:
                return sweep
    return None


def noise(profile: str, device: str, out: Path) -> int:
    """`batchline noise`: the survey alone, its report under `out`."""
    return _study(profile, device, out, stored_sweep)


def claims(profile: str, device: str, out: Path) -> int:
    """`batchline claims`: train the sweep and take the survey; the report, with the four
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
    """`batchline advise`: the batch size for each workload, from a stored run or study, or
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
    code = _print_advice(measured["noise"], workload, batch, cost_cap)
    return INTERRUPTED if measured.get("partial") else code


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
            f"{name}: {chosen['title']}\n\n{training.advice(chosen, TERMINAL, batch, cost_cap)}\n"
        )
    advised = any(not noise["workloads"][name].get("why_not_timed") for name in names)
    return CLEAN if advised else NOT_MEASURED


def _study(profile: str, device: str, out: Path, sweep) -> int:
    from batchline.bench.measure import environment

    device = _resolved(profile, device)
    folder = new_folder(out, environment.machine(device)["device_name"])
    try:
        study = _measured(profile, device)
        study["sweep"] = stored_sweep()
        if not study["partial"]:
            try:
                study["sweep"] = sweep()
            except (
                KeyboardInterrupt
            ):  # the survey is kept, beside the newest sweep that is stored
                study["partial"] = True
        shown = write(study, folder)
    finally:
        remove_if_empty(folder)
    if study["partial"]:
        return INTERRUPTED
    failed = any(
        "failed" in workload for workload in study["noise"]["workloads"].values()
    )
    return FAILED if failed or not shown else CLEAN


def _measured(profile: str, device: str) -> dict:
    """A study without its sweep; `partial` where Ctrl-C has left workloads out.

    Raises:
        KeyboardInterrupt: before the first workload is done.
    """
    from batchline.bench.measure import environment
    from batchline.bench.measure.isolation import Isolation

    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    study = {
        "machine": environment.machine(device),
        "started": started,
        "profile": profile,
        "partial": False,
        "noise": {"workloads": {}, "seconds": 0.0},
    }
    with contextlib.closing(
        Isolation(device, PROFILES[profile].deadline_s)
    ) as isolation:
        try:
            for so_far in surveys(isolation, profile):
                study["noise"] = so_far
        except KeyboardInterrupt:
            if not study["noise"]["workloads"]:
                raise
            study["partial"] = True
    return study


def _resolved(profile: str, device: str) -> str:
    from batchline.bench.measure import environment

    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}: use {', '.join(PROFILES)}")
    try:
        return environment.resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error


def write(study: Mapping, folder: Path) -> bool:
    """Store the study and write its report beside it; print the answers. Whether all of
    the report could be made.

    Where `folder` can't be written any more both go elsewhere, and a line says where.
    """
    with put_off():
        folder = publishing.store(
            lambda place: _store(study, place), folder, "advise --run"
        )
    parts = publishing.Parts()
    figures = parts.attempt(
        "drawing the plots",
        lambda: training.draw(study["noise"], study["sweep"], study["machine"], folder),
        {},
    )
    parts.attempt(
        "README.md",
        lambda: (folder / "README.md").write_text(
            _markdown(study, figures), encoding="utf-8"
        ),
    )
    parts.attempt("the report on the terminal", lambda: print(_terminal(study)))
    print(f"report: {folder / 'README.md'}", flush=True)
    return parts.complete


def _markdown(study: Mapping, figures: Mapping) -> str:
    title = (
        f"# Batchline: what the batch size does to training, on {study['machine']['device_name']}, "
        f"{study['started'][:10]}"
    )
    partial = (
        ["> **Partial.** It was stopped before its end."]
        if study.get("partial")
        else []
    )  # older ones never are
    measured = (
        f"The noise was measured in {study['noise']['seconds']:.0f} s, profile {study['profile']}, begun "
        f"{study['started']}."
    )
    text = training.markdown(study["noise"], study["sweep"], study["machine"], figures)
    return "\n\n".join([title, *partial, measured, *text]) + "\n"


def _terminal(study: Mapping) -> str:
    parts = training.terminal(study["noise"], study["sweep"], study["machine"])
    return "\n\n".join("\n".join(map(wrapped, part.splitlines())) for part in parts)


def _store(study: Mapping, folder: Path) -> None:
    text = json.dumps(study, separators=(",", ":"), ensure_ascii=False)
    write_whole(folder / FILE_NAME, text)


def _stored_noise(folder: Path) -> tuple[Path, Mapping, Mapping]:
    """The file that has the noise, of a study or of a run, the noise, and the machine."""
    path = folder / FILE_NAME
    if path.exists():
        try:
            document = read_json(path)
        except OSError as error:
            raise UsageError(f"can't read {path} ({error.strerror})") from error
        with blamed_on(path):
            return path, document["noise"], document["machine"]
    run = records.load(folder)
    with blamed_on(records.path_in(folder)):
        noise = run.about.get("noise")
    if not noise:
        raise UsageError(
            f"{folder} has no gradient noise in it: a run of all cases has, or `make noise`"
        )
    return records.path_in(folder), noise, run.machine
