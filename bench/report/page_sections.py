"""What stands on the page of a run, section by section, as blocks; and the plots that
its figures draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from batchline.bench.noise import claims, stored_survey
from batchline.bench.report import (
    advisor,
    audit,
    crossover,
    crossovers,
    invariance,
    ladder,
    latency_law,
    limits,
    page_data,
    page_training,
    readme,
    static,
    tables,
    training,
)
from batchline.bench.report import (
    claims as claims_report,
)
from batchline.bench.report import (
    noise as noise_report,
)
from batchline.bench.report.blocks import (
    BAD,
    Block,
    Bullets,
    Details,
    Figure,
    Heading,
    Table,
    blocks,
)
from batchline.bench.report.escaping import one_line
from batchline.bench.report.tables import Style
from batchline.bench.statuses import MEASURED, is_broken
from batchline.bench.store.records import Run

CELLS = (
    "A cell of the tables is the median latency · the speed-up over the fastest of PyTorch's variants at that "
    "batch · the peak memory above the inputs (outputs and workspace) · the share reached of the ceiling that "
    "binds it, and which that is. ★ marks the best of a row of those that are ranked; † marks what is not."
)


@dataclass(frozen=True)
class Section:
    """A part of the page, with the anchor that the contents link to."""

    id: str
    title: str
    blocks: list[Block]


@dataclass(frozen=True)
class Problem:
    """The tables of one scenario and dtype; `name` is its key among the op's plots."""

    name: str
    scenario: str
    dtype: str
    about: str
    blocks: list[Block]


@dataclass(frozen=True)
class Op:
    """An op with a time: its variants, the baseline first, and its problems."""

    name: str
    signature: str
    variants: list[str]
    problems: list[Problem]
    ladder: list[Block]


@dataclass
class Plots:
    """The page's data: `ops` as page_data.ops has it, `others` the plots of
    page_training by name.
    """

    ops: dict = field(default_factory=dict)
    others: dict = field(default_factory=dict)


def ops(run: Run, plots: Plots) -> list[Op]:
    """Every op of which something was timed; their curves are added to `plots`."""
    plots.ops = page_data.ops(run)
    found = []
    for name, entry in plots.ops.items():
        problems = [
            Problem(
                page_data.problem_name(scenario, dtype),
                scenario,
                dtype,
                run.about["scenarios"][op][scenario],
                _problem(run, records),
            )
            for (op, scenario, dtype), records in run.groups().items()
            if op == name and any(record.status == MEASURED for record in records)
        ]
        rungs = [
            readme.LADDER,
            *blocks(lambda style: ladder.table(run, name, style)),
            *blocks(lambda style: ladder.configurations(run, name, style)),
        ]
        found.append(
            Op(name, run.about["signatures"][name], entry["variants"], problems, rungs)
        )
    return found


def _problem(run: Run, records: list) -> list[Block]:
    ceilings = run.about["ceilings"]
    clocks = blocks(lambda style: tables.clocks(records, style, ceilings))
    return [
        *blocks(lambda style: tables.comparison(records, style, ceilings)),
        *([Details("Every clock", tuple(clocks))] if clocks else []),
    ]


def choice(run: Run) -> Section | None:
    """Which variant to use from which batch on; None where nothing was timed."""
    found = _noted(run, crossovers)
    return Section("choice", "Which variant from which batch", found) if found else None


def sections(run: Run, plots: Plots) -> list[Section]:
    """Everything behind the ops, in the page's order, without what this run has nothing
    of.
    """
    about = run.about
    found = [
        Section(
            "latency-law",
            "Latency over the batch",
            blocks(lambda style: latency_law.table(run, style)),
        ),
        Section(
            "memory-law",
            "Memory over the batch",
            blocks(lambda style: limits.memory_law(run, style)),
        ),
        Section("ghost", "Ghost norms or fused?", _noted(run, crossover)),
        Section(
            "invariance",
            "Batch invariance",
            blocks(lambda style: invariance.section(run, style)),
        ),
        Section(
            "numerics",
            "Numerics of the statistics",
            blocks(lambda style: audit.section(run, style), BAD),
        ),
    ]
    if about.get("noise"):
        found += _training(run, plots)
    found += [
        Section("failures", "Failures", _without_time(run, broken=True)),
        Section(
            "skips",
            "Not timed, and why",
            [*_without_time(run, broken=False), *_left_out(run)],
        ),
        Section("static", "What the compilers made of the GPU variants", _static(run)),
        Section(
            "machine",
            "The machine",
            [
                *blocks(lambda style: tables.machine(run, style)),
                Heading("What it can do"),
                *blocks(lambda style: limits.ceilings(run, style)),
                Heading("How it was measured"),
                readme.how_measured(run),
            ],
        ),
    ]
    return [section for section in found if section.blocks]


def _noted(run: Run, module) -> list[Block]:
    """A module's note and table, or nothing."""
    table = blocks(lambda style: module.table(run, style))
    return [module.NOTE, *table] if table else []


def _without_time(run: Run, broken: bool) -> list[Block]:
    some = tuple(
        record
        for record in run.records
        if is_broken(record.status, record.reason) == broken
    )
    files = run.broken_files if broken else ()
    return blocks(
        lambda style: tables.not_measured(
            replace(run, broken_files=files, records=some), style
        )
    )


def _left_out(run: Run) -> list[Block]:
    if not run.about["left_out"]:
        return []
    return [
        Heading("Larger than the profile takes"),
        *blocks(lambda style: readme.left_out(run)),
    ]


def _static(run: Run) -> list[Block]:
    examples = blocks(lambda style: static.examples(run, style))
    rules = blocks(lambda style: static.configurations(run, style))
    missing = run.about["not_compiled"]
    return [
        *([static.verdict(run)] if examples else []),
        *examples,
        *(
            [
                Details(
                    "Every configuration that the rules give on the scenarios",
                    tuple(rules),
                )
            ]
            if rules
            else []
        ),
        *([f"GPU variants not compiled to the end: {missing}."] if missing else []),
    ]


def _training(run: Run, plots: Plots) -> Iterator[Section]:
    noise, sweep = run.about["noise"], run.about["sweep"]
    workloads = {
        one_line(name): workload
        for name, workload in training.surveyed_workloads(noise).items()
    }
    found: list[Block] = [noise_report.EXPLAINED]
    if workloads:
        plots.others["noise"] = page_training.noise(workloads)
        found.append(
            Figure("noise", "Gradient noise scale over training, 95% intervals")
        )
    for name, workload in workloads.items():
        found += [
            Heading(f"The noise of {name}"),
            *blocks(lambda style: noise_report.section(workload, style)),
        ]
    found += [
        Bullets(
            tuple(
                f"{name}: not measured: {why}"
                for name, why in training.failed(noise).items()
            )
        )
    ]
    yield Section("noise", "Gradient noise", found)
    yield Section(
        "batch-size",
        "What batch size?",
        [
            *(
                block
                for name, workload in workloads.items()
                for block in _advice(name, workload, plots)
            ),
            *_time_to_target(run, plots),
        ],
    )
    yield Section(
        "claims",
        "The four claims",
        list(_claims(claims.judge(sweep, noise), sweep, run.machine)),
    )


def _advice(name: str, workload: Mapping, plots: Plots) -> Iterator[Block]:
    yield Heading(f"The batch size of {name}")
    try:
        drawn = page_training.advice(
            stored_survey.advice(workload, stored_survey.middle(workload))
        )
        shown = blocks(lambda style: training.advice(workload, style))
    except ValueError as error:
        yield f"No advice: {error}."
        return
    titles = {
        "time": "Predicted time to a loss",
        "step": "Time of a step and of a sample",
        "memory": "Peak memory",
    }
    for what, plot in drawn.items():
        plots.others[f"{what} of {name}"] = plot
        yield Figure(f"{what} of {name}", f"{titles[what]} of {name} over the batch")
    yield from shown


def _time_to_target(run: Run, plots: Plots) -> Iterator[Block]:
    yield Heading("Predicted and measured: the time to a loss")
    result = training.judged_sweep(run.about["noise"], run.about["sweep"])
    if isinstance(result, str):
        yield result
        return
    plots.others["time to target"] = page_training.time_to_target(result)
    yield Figure(
        "time to target",
        f"Time to a training loss of {result.target_loss:g} over the batch",
    )
    yield claims_report.provenance(run.about["sweep"], run.machine)
    yield from blocks(lambda style: advisor.comparison(result, style))


def _claims(verdicts: list, sweep: Mapping | None, machine: Mapping) -> Iterator[Block]:
    def short(style: Style) -> str:
        return claims_report.short(verdicts, style)

    yield from [
        claims_report.EXPLAINED,
        *blocks(short),
        claims_report.provenance(sweep, machine),
    ]
    for number, verdict in enumerate(verdicts, 1):
        yield Heading(f"{number}. “{verdict.claim}”: {verdict.verdict}")
        yield f"Hypothesis: {verdict.hypothesis}"
        yield Table(
            ("part", "verdict", "effect (95% interval)"),
            tuple(
                (finding.part, finding.text, finding.effect)
                for finding in verdict.findings
            ),
        )
        if verdict.evidence:
            yield Details(
                "The evidence",
                tuple(
                    block
                    for table in verdict.evidence
                    for block in (f"{table.title}:", Table(table.headers, table.rows))
                ),
            )
        yield f"Sources: {'; '.join(verdict.sources)}."
