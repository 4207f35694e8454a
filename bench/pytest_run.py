"""One pytest session over a plan: pytest selects and pytest-benchmark keeps the rounds,
a worker process takes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Sequence

import pytest

from batchline.bench import texts
from batchline.bench.budget import Schedule
from batchline.bench.cases import Case, Plan, Profile, refined
from batchline.bench.declared import DeclaredOp
from batchline.bench.store.journal import RunBuilder
from batchline.bench.store.records import (
    Compiled,
    Limits,
    OpFacts,
    RunPlan,
    ScenarioFacts,
    Tuning,
    VariantFacts,
)
from batchline.bench.store.records import Effort as RunEffort
from batchline.bench.measure import stand_in
from batchline.bench.measure.timing import sustained
from batchline.bench.measure.ahead import Ahead
from batchline.bench.measure.worker.isolation import Isolation, WorkerLost
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.task import Outcome, Task
from batchline.bench.progress import Progress
from batchline.bench.selection import REPOSITORY, require_selected, run_pytest
from batchline.bench.session import Session
from batchline.bench.verdicts.crossovers import batches_to_add
from batchline.kernels.device_files import file_for, stored

CLEAN, BROKEN_CASES, INTERRUPTED = 0, 1, 130


def measure(
    schedule: Schedule,
    measurer: Measurer,
    machine: dict,
    selection: str,
    builder: RunBuilder,
) -> int:
    """Measure the plan's cases that match `selection`, each into the builder as it is
    done; returns how it ended: CLEAN, INTERRUPTED (Ctrl-C; what was measured is in the
    journal) or BROKEN_CASES.

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
        code, selection, len(the_plan.cases), f"of profile {the_plan.profile.name}"
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
        pytest.ExitCode.INTERRUPTED: INTERRUPTED,
        pytest.ExitCode.INTERNAL_ERROR: BROKEN_CASES,
    }.get(code, CLEAN)


def _measured(session: Session, selection: str, *plugins) -> int:
    """pytest's exit code of a session."""
    benchmark = ["-p", "pytest_benchmark.plugin", "--benchmark-quiet"]
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


def _other_effort(profile: Profile) -> Effort:
    """By every clock but the first; on the stand-in, whose times are made up, few
    samples.
    """
    effort = Effort(profile.precision, profile.other_clocks_s)
    if stand_in.is_on():
        return dataclasses.replace(
            effort, least=stand_in.SAMPLES, most=stand_in.SAMPLES
        )
    return effort


class Measurer:
    """Puts cases and ceilings to the worker, with the effort of a plan's profile, and
    compiles ahead for them.
    """

    def __init__(
        self,
        the_plan: Plan,
        isolation: Isolation,
        clocks: Sequence[str],
        ahead: Ahead | None,
    ):
        self._plan = the_plan
        self.isolation = isolation
        self._ahead = ahead
        profile = the_plan.profile
        self._settings = {
            "nearby_seed": ahead.nearby_seed if ahead else None,
            "clocks": tuple(clocks),
            "warm_up_s": profile.warm_up_s,
            "energy_s": profile.energy_s,
            "sustained_s": sustained.window_s(),
            "longest_call_s": profile.longest_call_s,
            "effort": Effort(profile.precision, profile.sampling_s),
            "other_effort": _other_effort(profile),
        }

    def ceilings(self) -> tuple[dict | None, str | None]:
        """The machine's ceilings, or None and why it has none."""
        dtypes = self._plan.profile.dtypes[self._plan.device]
        try:
            return self.isolation.call("ceilings", dtypes, self._settings["effort"])
        except (WorkerLost, RuntimeError) as error:
            return None, str(error)

    def note(self, cases: Sequence[Case]) -> None:
        """Find what must be compiled for these cases, which come in this order."""
        if self._ahead:
            self._ahead.note(cases)

    def compile_s(self, cases: Sequence[Case]) -> float:
        """Seconds to compile what these cases need and the noted ones before them do
        not.
        """
        return self._ahead.seconds_for(cases) if self._ahead else 0.0

    def compile_ahead(
        self, cases: Sequence[Case], seconds: float, tell: Callable[[str], None]
    ) -> dict | None:
        """Compile what these cases need, for so many seconds at most; None where
        nothing is compiled.
        """
        if not self._ahead:
            return None

        def progress(done: int, of: int) -> None:
            tell(f"{done} of {of} kernels compiled")

        return dataclasses.asdict(self._ahead.compile(cases, seconds, progress))

    def outcomes(self, cases: Sequence[Case]) -> dict[str, Outcome]:
        """The outcomes of the cases of one problem, by case id."""
        op, scenario, dtype, batch = cases[0].problem
        entries = tuple((case.id, case.variant.name) for case in cases)
        return self.isolation.measure(
            Task(op, scenario, dtype, batch, entries, **self._settings)
        )


def _tuning(op: DeclaredOp, device: str) -> Tuning | None:
    """Where the op's configurations come from; None where no variant of it is tuned."""
    if not any(variant.tunable for variant in op.variants.values()):
        return None
    path = file_for(op.folder, "tuning", device)
    name = path.relative_to(REPOSITORY).as_posix()
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
        RunEffort(profile.precision, profile.sampling_s),
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
