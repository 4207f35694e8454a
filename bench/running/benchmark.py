"""A benchmark run: plan, measure in one pytest session, publish, and say by the exit
code how it went.

pytest selects the cases, pytest-benchmark keeps the rounds, and a worker process takes
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import secrets
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchline.bench import publishing, texts
from batchline.bench.cases import CLOCKS, Case, Plan, plan, profile_named, refined
from batchline.bench.console import complain, mark_lines
from batchline.bench.declared import DeclaredOp
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import (
    HISTORY,
    RUNS,
    new_folder,
    remove_if_empty,
    require_writable,
)
from batchline.bench.measure.ahead import Ahead
from batchline.bench.measure.ahead.folder import VARIABLE as KERNELS
from batchline.bench.measure.ahead.folder import kernels_folder
from batchline.bench.measure.worker import ranks
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.report.sections.checks import impossible
from batchline.bench.running import after_cases, dealing
from batchline.bench.running.budget import Schedule
from batchline.bench.running.dealing import DealingMeasurer
from batchline.bench.running.session import Measurer, Progress, Session
from batchline.bench.selection import require_cases, require_selected, run_pytest
from batchline.bench.statuses import MEASURED, NOT_REACHED, is_broken
from batchline.bench.stopping import put_off
from batchline.bench.store.journal import Journal, RunBuilder, store
from batchline.bench.store.records import (
    Compiled,
    Effort,
    Limits,
    OpFacts,
    Run,
    RunPlan,
    ScenarioFacts,
    Tuning,
    VariantFacts,
)
from batchline.bench.verdicts.crossovers import batches_to_add
from batchline.kernels.device_files import file_for, stored


@dataclass(frozen=True)
class Request:
    """What a run is asked for: the profile's cases that match `selection` (pytest's
    -k).

    `clocks`: names of the clocks to time by, the one that ranks first; by default all
    of the device's. `deadline_s`: the longest that one step of a case may take; by
    default the profile's.
    """

    profile: str
    device: str
    selection: str = ""
    clocks: tuple[str, ...] = ()
    deadline_s: float | None = None


def benchmark(
    request: Request, folder: Path = RUNS, history_folder: Path = HISTORY
) -> int:
    """Measure what is asked for, write the report under `folder`, and add the run to
    the history in `history_folder`; the exit code.

    Raises:
        UsageError: before anything is measured, if the request, the environment or a
        folder is not usable.
    """
    began_s = time.monotonic()
    at = _place(request)
    request, machine = _resolved(request)
    deadline_s = request.deadline_s or profile_named(request.profile).deadline_s
    if at and at.rank:
        ranks.attend(at, request.device, machine["device_name"], deadline_s)
        return ExitCode.CLEAN
    run_folder = new_folder(folder, machine["device_name"])
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with contextlib.ExitStack() as stack:
        stack.callback(remove_if_empty, run_folder)
        require_writable(history_folder, "--history (HISTORY= of make)")
        stack.callback(remove_if_empty, history_folder)
        if request.device == "cuda":
            _require_named_folder()
            stack.enter_context(kernels_folder())
        # It starts its worker while the ops are read; where ranks measure the cases, it
        # comes after them.
        isolation = stack.enter_context(
            contextlib.closing(
                Isolation(request.device, deadline_s, starts_now=at is None)
            )
        )
        dealt = None
        if at:
            dealt = stack.enter_context(
                dealing.started(
                    at, request.device, machine["device_name"], deadline_s, run_folder
                )
            )
            machine = machine | {"ranks": dealt.places}
        the_plan = plan(request.profile, request.device, request.deadline_s)
        for one in the_plan.broken:
            complain(one)
        require_cases(
            [case.id for case in the_plan.cases], f"of profile {request.profile}"
        )
        builder = stack.enter_context(
            contextlib.closing(RunBuilder(Journal(run_folder), started))
        )
        ahead = None
        if request.device == "cuda":
            ahead = stack.enter_context(contextlib.closing(_start_ahead()))
        schedule = Schedule(
            the_plan, lambda: time.monotonic() - began_s, at.count if at else 1
        )
        parts = the_plan, isolation, request.clocks, ahead
        measurer = DealingMeasurer(*parts, dealt) if dealt else Measurer(*parts)
        ended = _measure(schedule, measurer, machine, request.selection, builder)
        with put_off():  # after a Ctrl-C another one must find the run stored
            builder.add(seconds=round(time.monotonic() - began_s, 1))
            # What a variant may have left running must not be there when the run is
            # stored.
            isolation.close()
            the_run = builder.run()
            run_in = store(the_run, run_folder)
        return _exit_code(
            the_run, ended, publishing.publish(the_run, run_in, history_folder)
        )


def _place(request: Request) -> ranks.Place | None:
    """Where torchrun has put this process, and from now on the device that it has
    there; None where it is the only one.
    """
    at = ranks.place()
    if at:
        ranks.take_device(at, request.device)
        if at.rank:
            mark_lines(f"[rank {at.rank}] ")
    return at


def _resolved(request: Request) -> tuple[Request, dict]:
    """The request with its device and its clocks named, and the machine's description.

    Raises:
        UsageError: for an unknown profile, device or clock, or a missing library.
    """
    environment = _require_environment()
    try:
        device = environment.resolve_device(request.device)
        profile_named(request.profile)
    except ValueError as error:
        raise UsageError(str(error)) from error
    clocks = request.clocks or CLOCKS[device]
    if unknown := [name for name in clocks if name not in CLOCKS[device]]:
        raise UsageError(
            f"{unknown[0]!r} is no clock of {device}: use {', '.join(CLOCKS[device])}"
        )
    request = dataclasses.replace(request, device=device, clocks=tuple(clocks))
    from batchline.bench.measure import (
        method,
    )  # after it is known that all is installed

    machine = environment.machine(device)
    return request, machine | {"harness": method.harness()}


def _require_named_folder() -> None:
    """Raise UsageError if compiled kernels are to be kept in a folder that can't be
    written.
    """
    if named := os.environ.get(KERNELS):
        require_writable(Path(named), f"{KERNELS}=")


def _start_ahead() -> Ahead:
    """What compiles the run's kernels, for this machine's GPU, in the block of
    `kernels_folder`.
    """
    from batchline.bench.measure.ahead.gpu import this_gpu

    return Ahead(this_gpu(), secrets.randbits(62))


def _measure(
    schedule: Schedule,
    measurer: Measurer,
    machine: dict,
    selection: str,
    builder: RunBuilder,
) -> int:
    """Measure all of it into the builder; how it ended: CLEAN, STOPPED, or FAULT where
    Batchline itself failed.

    Raises:
        UsageError: if `selection` chooses nothing; then there is no journal.
        KeyboardInterrupt: before the run has begun, so with nothing to keep.
    """
    try:
        ended = measure_cases(schedule, measurer, machine, selection, builder)
        measurer.release()
        if ended == ExitCode.CLEAN:
            after_cases.measure_further(measurer.isolation, schedule.of, builder)
            builder.add(partial=False)
    except UsageError:
        builder.discard()
        raise
    except KeyboardInterrupt:
        ended = ExitCode.STOPPED
    except Exception as error:
        if not builder.has_begun:
            raise
        complain(
            f"Batchline itself failed: {texts.error_line(error)}; what was measured before is kept"
        )
        ended = ExitCode.FAULT
    if not builder.has_begun:
        raise KeyboardInterrupt
    return ended


def _require_environment():
    """bench.measure.machine.environment, if what it and the measuring need is installed."""
    try:
        from batchline.bench.measure.machine import environment
    except ImportError as error:
        raise UsageError(
            f"{error}: install what requirements.txt lists (`make install`)"
        ) from error
    missing = environment.missing_packages()
    if missing:
        raise UsageError(
            f"not installed: {', '.join(missing)}; install what requirements.txt lists (`make install`)"
        )
    return environment


def _exit_code(run: Run, ended: int, published: bool) -> int:
    """What only the machine is to blame for is no fault of a case; where it left no
    time at all, nothing is known.
    """
    if ended == ExitCode.STOPPED:
        return ended
    statuses = {record.status for record in run.records}
    if MEASURED not in statuses:
        return ExitCode.NOT_MEASURED
    if ended != ExitCode.CLEAN:
        return ended
    broken = NOT_REACHED in statuses or any(
        is_broken(record.status, record.reason) for record in run.records
    )
    if broken or run.broken_files or impossible(run) or not published:
        return ExitCode.FAULT
    return ExitCode.CLEAN


def measure_cases(
    schedule: Schedule,
    measurer: Measurer,
    machine: dict,
    selection: str,
    builder: RunBuilder,
) -> int:
    """Measure the plan's cases that match `selection`, each into the builder as it is
    done; returns how it ended: CLEAN, STOPPED (Ctrl-C; what was measured is in the
    journal) or FAULT.

    A profile that `refines` then measures more batch sizes where the first ones have
    shown that the answer changes.

    Raises:
        UsageError: if `selection` is not a pytest -k expression, or matches nothing.
    """
    the_plan, progress = schedule.of, Progress()
    session = Session(schedule, measurer, progress, builder)
    beginning = _Beginning(builder, machine, the_plan, selection)
    code = _measured(session, selection, beginning)
    require_selected(
        code,
        selection,
        [case.id for case in the_plan.cases],
        f"of profile {the_plan.profile.name}",
    )
    if schedule.forecast:  # there is none of a run that was stopped before it
        builder.add(forecast=schedule.forecast.as_dict())
    if code == pytest.ExitCode.OK and the_plan.profile.refines:
        more = refined(
            the_plan, batches_to_add(builder.records, builder.run().baselines)
        )
        second = Session(
            schedule.also(more), measurer, progress, builder, session.ceilings
        )
        second_code = _measured(second, selection) if more.cases else code
        if second.outcomes:
            code = second_code
    return {
        pytest.ExitCode.INTERRUPTED: ExitCode.STOPPED,
        pytest.ExitCode.INTERNAL_ERROR: ExitCode.FAULT,
    }.get(code, ExitCode.CLEAN)


def _measured(session: Session, selection: str, *plugins) -> int:
    """pytest's exit code of a session."""
    benchmark = ["-p", "pytest_benchmark.plugin", "--benchmark-quiet"]
    # it stores nothing, and would leave an empty folder .benchmarks
    benchmark.append(f"--benchmark-storage=file://{os.devnull}")
    code = run_pytest([*benchmark, "-k", selection], session, *plugins)
    session.progress.end()
    if code == pytest.ExitCode.OK:
        session.measure_ceilings()  # again, for the machine may not be what it was
    return code


class _Beginning:
    """Begins the run when pytest has chosen the cases: with pytest-benchmark's
    description of the machine beside ours.
    """

    def __init__(
        self, builder: RunBuilder, machine: dict, the_plan: Plan, selection: str
    ):
        self._builder = builder
        self._machine = machine
        self._plan = the_plan
        self._selection = selection

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session):
        chosen = {item.callspec.params["case_id"] for item in session.items}
        if chosen:
            self._builder.begin(
                machine=self._machine,
                benchmark_header=_benchmark_header(session.config),
                **_known_before(self._plan, chosen, self._selection),
            )


def _benchmark_header(config) -> dict:
    """What pytest-benchmark stores of a run beside its benchmarks."""
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    document = hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=[],
        include_data=True,
        machine_info=machine_info,
        commit_info=commit_info,
    )
    return {name: part for name, part in document.items() if name != "benchmarks"}


def _tuning(op: DeclaredOp, device: str) -> Tuning | None:
    """Where the op's configurations come from; None where no variant of it is tuned."""
    if not any(variant.tunable for variant in op.variants.values()):
        return None
    path = file_for(op.folder, "tuning", device)
    name = path.relative_to(op.folder.parents[1]).as_posix()
    try:
        header = stored(path)
    except ValueError as damaged:
        return Tuning(name, why_not=texts.clean_line(damaged))
    return Tuning(name, header.get("measured"), header.get("seconds"))


def _known_before(the_plan: Plan, chosen: Container[str], selection: str) -> dict:
    """The fields of the run that are known before anything is measured; `chosen` has
    the cases' ids.
    """
    cases = [case for case in the_plan.cases if case.id in chosen]
    ops = {case.op: the_plan.ops[case.op] for case in cases}
    return {
        "plan": _run_plan(the_plan, cases, selection),
        "ops": {name: _op_facts(op, the_plan.device) for name, op in ops.items()},
        "variants": {
            case.variant.id: VariantFacts(
                texts.clean_line(case.variant.idea),
                case.variant.backend,
                case.variant.below,
                case.variant.own_tolerance,
                case.variant.gives,
            )
            for case in cases
        },
        "broken_files": [dataclasses.asdict(one) for one in the_plan.broken],
        "compiled": Compiled(incomplete="the run was stopped"),
    }


def _run_plan(the_plan: Plan, cases: Sequence[Case], selection: str) -> RunPlan:
    profile = the_plan.profile
    groups = {case.problem[:3] for case in cases}
    limits = profile.limits[the_plan.device]
    return RunPlan(
        profile.name,
        selection,
        Limits(limits.flops, limits.bytes),
        Effort(profile.precision, profile.sampling_s),
        tuple(
            problem
            for problem in the_plan.left_out
            if not selection or problem[:3] in groups
        ),
    )


def _op_facts(op: DeclaredOp, device: str) -> OpFacts:
    scenarios = {
        scenario.name: ScenarioFacts(scenario.title, dict(scenario.sizes))
        for scenario in op.scenarios.values()
    }
    return OpFacts(op.signature, op.baseline, scenarios, _tuning(op, device))
