"""What the batch size does to training: the gradient noise, the batch to train at, and
the article's four claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from batchline.bench.noise.advisor import Moment
from batchline.bench.noise.claims.verdict import Verdict
from batchline.bench.noise.time_to_target import TimeToTarget
from batchline.bench.report import page_plots
from batchline.bench.report.document import (
    FILES,
    Details,
    Figure,
    Lines,
    Mark,
    Marked,
    Only,
    Part,
    Place,
    Section,
    Table,
    Text,
    table,
)
from batchline.bench.report.findings import TrainingFindings
from batchline.bench.report.sections import advisor
from batchline.bench.stats.noise_scale import BOUNDED, NoiseEstimate, expected_cosine
from batchline.bench.texts import one_line

_NOISE_NOTE = (
    "B_simple = tr Σ/‖G‖² is the batch at which the noise of the mean gradient is as large as the gradient (McCandlish "
    "et al. 2018, arXiv:1812.06162). It is taken from independent batches drawn at that point of training, with "
    "Fieller's 95% interval of these batches; how far seeds are apart is seen beside it. Nothing is clamped. The "
    "two-batch-size estimate is from the norms of the same batches and of four put together. The tests are each a "
    "variance of ḡ over ‖ḡ‖² at that batch: of all of it (norm; Byrd et al. 2012), along ḡ and across it (inner "
    "product, orthogonality; Bollapragada et al. 2018, arXiv:1710.11258)."
)
_CLAIMS_NOTE = (
    "The article that this project grew from makes four claims about batch size. Each is put as a hypothesis that this "
    "suite can refute. Intervals are at 95%. A difference that is within a stated margin does not count as one, and an "
    "interval too wide to tell leaves the part undecided."
)


def sections(
    findings: TrainingFindings, machine: Mapping | None = None
) -> Iterator[Section]:
    """The noise, the batch size and the claims.

    `machine`: that of the run which the report is of; a sweep of another is said to be
    that.
    """
    yield noise(findings)
    yield batch_size(findings, machine)
    yield claims(findings.claims, findings.sweep, machine)


def noise(findings: TrainingFindings) -> Section:
    """The noise of every workload over training, by layer and in direction."""
    parts: list[Part] = [Text(_NOISE_NOTE)]
    if findings.workloads:
        moments = {one_line(name): points for name, points in findings.moments.items()}
        parts.append(
            Figure(
                "Gradient noise scale over training, 95% intervals",
                "noise",
                "noise",
                page_plots.noise(moments),
            )
        )
    parts += [
        Section(
            "",
            f"The noise of {name}",
            tuple(noise_of(workload, findings.moments[name])),
        )
        for name, workload in findings.workloads.items()
    ]
    parts += [
        Section("", f"The noise of {name}", (Text(f"Not measured: {why}."),))
        for name, why in findings.failed.items()
    ]
    return Section("noise", "Gradient noise", (Only(FILES, tuple(parts)),))


def noise_of(workload: Mapping, moments: Sequence[Moment]) -> Iterator[Part]:
    """One workload: the noise over training, by layer at the last point, and the
    direction of independent batches.
    """
    first, last = moments[0], moments[-1]
    yield Text(
        f"{workload['title'][0].upper()}{workload['title'][1:]}: {workload['parameters']:,} parameters, "
        f"{workload['samples']:,} samples; plain SGD at batch {workload['train_batch']} and rate "
        f"{workload['learning_rate']:g}. {len(first.by_seed)} seeds, and for each "
        f"{first.estimate.batches // len(first.by_seed)} batches of {first.estimate.batch} at each point."
    )
    yield _over_training(moments)
    yield Text(f"By layer, after {last.updates} updates:")
    yield _by_layer(last)
    yield Text(
        "The cosine between the mean gradients of two independent batches, measured (and "
        "predicted, 1/(1 + B_simple/B)):"
    )
    yield _direction(moments)


def summarize_noise(moments: Sequence[Moment]) -> str:
    """The noise over training, in a line."""
    return "B_simple " + ", ".join(
        f"after {moment.updates} updates {moment.estimate.text()}" for moment in moments
    )


def _over_training(moments: Sequence[Moment]) -> Table:
    headers = [
        "updates",
        "loss",
        "B_simple (95% interval)",
        *(f"seed {seed}" for seed in moments[0].by_seed),
        "two batch sizes",
        *(f"{name} test" for name in moments[0].tests),
    ]
    return table(
        headers,
        (
            [
                str(moment.updates),
                f"{moment.loss:.3f}",
                moment.estimate.text(),
                *(estimate.text() for estimate in moment.by_seed.values()),
                _scale(moment.two_batch_sizes.simple),
                *(f"{value:.3g}" for value in moment.tests.values()),
            ]
            for moment in moments
        ),
    )


def _by_layer(moment: Moment) -> Table:
    return table(
        ["layer", "B_simple (95% interval)", "tr Σ", "‖G‖²"],
        (
            [
                layer,
                estimate.text(),
                _scale(estimate.scale.trace),
                _scale(estimate.scale.square),
            ]
            for layer, estimate in [*moment.layers.items(), ("all", moment.estimate)]
        ),
    )


def _direction(moments: Sequence[Moment]) -> Table:
    batches = list(moments[0].cosines)
    return table(
        ["updates", *(f"B = {batch}" for batch in batches)],
        (
            [str(moment.updates), *(_cosine(moment, batch) for batch in batches)]
            for moment in moments
        ),
    )


def _cosine(moment: Moment, batch: int) -> str:
    cosines = moment.cosines[batch]
    measured = f"{sum(cosines) / len(cosines):.3f}" if cosines else "none"
    return f"{measured} ({_predicted(moment.estimate, batch)})"


def _predicted(estimate: NoiseEstimate, batch: int) -> str:
    if estimate.answer == BOUNDED:
        return f"{expected_cosine(estimate.scale.simple, batch):.3f}"
    return (
        f"at most {expected_cosine(estimate.simple.low, batch):.3f}"
        if estimate.simple.low > 0
        else "not known"
    )


def _scale(value: float) -> str:
    return f"{value:.3g}"


def batch_size(findings: TrainingFindings, machine: Mapping | None = None) -> Section:
    """The batch to train at for each workload, and the test of that by the sweep."""
    parts: list[Part] = [
        Only(FILES, (_batch_size_of(findings, name),)) for name in findings.workloads
    ]
    parts.append(
        Only(
            FILES,
            (
                Section(
                    "",
                    "Predicted and measured: the time to a loss",
                    tuple(_time_to_target(findings, machine)),
                ),
            ),
        )
    )
    brief = [
        Text(
            f"{name}: {summarize_noise(moments)}. For the noise after "
            f"{findings.middle(name).updates} updates: "
            f"{advisor.summary_or_why_not(findings, name)}"
        )
        for name, moments in findings.moments.items()
    ]
    brief += [
        Text(f"{name}: the noise was not measured: {why}")
        for name, why in findings.failed.items()
    ]
    parts.append(Only(Place.TERMINAL, tuple(brief)))
    return Section("batch-size", "What batch size?", tuple(parts))


def _batch_size_of(findings: TrainingFindings, name: str) -> Section:
    title = f"The batch size of {name}"
    try:
        advice = tuple(advisor.parts(findings.advice(name)))
    except ValueError as error:
        return Section("", title, (Text(f"No advice: {error}."),))
    drawn = Figure(
        f"step time, memory and time to a loss of {name} over the batch",
        f"advice-{name}",
    )
    return Section(
        "",
        title,
        (
            Only(Place.README, (drawn,)),
            Only(Place.PAGE, tuple(_advice_figures(findings, name))),
            *advice,
        ),
    )


def _advice_figures(findings: TrainingFindings, name: str) -> Iterator[Figure]:
    titles = {
        "time": "Predicted time to a loss",
        "step": "Time of a step and of a sample",
        "memory": "Peak memory",
    }
    name_on_page = one_line(name)
    for what, plot in page_plots.advice(findings.middle_advice(name)).items():
        yield Figure(
            f"{titles[what]} of {name_on_page} over the batch",
            key=f"{what} of {name_on_page}",
            plot=plot,
        )


def _time_to_target(
    findings: TrainingFindings, machine: Mapping | None
) -> Iterator[Part]:
    result = findings.time_to_target
    if isinstance(result, str):
        yield Text(result)
        return
    yield _time_figure(result)
    yield Text(provenance(findings.sweep, machine))
    yield from advisor.comparison(result)


def _time_figure(result: TimeToTarget) -> Figure:
    return Figure(
        f"Time to a training loss of {result.target_loss:g} over the batch",
        "time-to-target",
        "time to target",
        page_plots.time_to_target(result),
    )


def claims(
    verdicts: Sequence[Verdict],
    sweep: Mapping | None,
    machine: Mapping | None = None,
) -> Section:
    """The verdicts in short, then each claim with its parts and its evidence.

    Args:
        sweep: the record of the training sweep, or None where there is none.
        machine: that of the run which the section belongs to; a sweep of another is
        said to be that.
    """
    origin = Text(provenance(sweep, machine))
    each = (_claim(number, verdict) for number, verdict in enumerate(verdicts, 1))
    lines = [
        line
        for number, verdict in enumerate(verdicts, 1)
        for line in _claim_lines(number, verdict)
    ]
    return Section(
        "claims",
        "The four claims",
        (
            Only(FILES, (Text(_CLAIMS_NOTE), tabulate_claims(verdicts), origin, *each)),
            Only(Place.TERMINAL, (Lines((*lines, origin.text)),)),
        ),
    )


def tabulate_claims(verdicts: Sequence[Verdict]) -> Table:
    """One row per claim: the verdict, and the effects that decide it."""
    rows = (
        [
            verdict.claim,
            Marked(verdict.text, Mark.STRONG),
            verdict.effect or "nothing",
        ]
        for verdict in verdicts
    )
    return table(["claim", "verdict", "measured"], rows)


def _claim(number: int, verdict: Verdict) -> Section:
    rows = (
        [finding.part, finding.text, finding.effect] for finding in verdict.findings
    )
    parts: list[Part] = [
        Text(f"Hypothesis: {verdict.hypothesis}"),
        table(["part", "verdict", "effect (95% interval)"], rows),
    ]
    if verdict.evidence:
        tables = (
            part
            for one in verdict.evidence
            for part in (Text(f"{one.title}:"), table(one.headers, one.rows))
        )
        parts.append(Details("The evidence", tuple(tables)))
    parts.append(Text(f"Sources: {'; '.join(verdict.sources)}."))
    return Section("", f"{number}. “{verdict.claim}”: {verdict.verdict}", tuple(parts))


def _claim_lines(number: int, verdict: Verdict) -> Iterator[str]:
    """The verdict, then its parts, set in under it."""
    yield f"{number}. {verdict.claim}: {verdict.text}"
    for finding in verdict.findings:
        effect = f" [{finding.effect}]" if finding.effect else ""
        yield f"   - {finding.part}: {finding.text}{effect}"


def provenance(sweep: Mapping | None, machine: Mapping | None = None) -> str:
    """Whose training sweep the verdicts rest on: the machine, the date, and how much of
    it there is.
    """
    if sweep is None:
        return "There is no training sweep: `batchline claims` runs one."
    name = sweep["machine"]["device_name"]
    other = machine is not None and name != machine["device_name"]
    whose = (
        f" **That is another machine than this run's, {machine['device_name']}.**"
        if other
        else ""
    )
    missing = (
        f" It is partial: {len(sweep['not_run'])} runs were not begun in time."
        if sweep["partial"]
        else ""
    )
    grid = sweep["grid"]
    return (
        f"The training sweep was measured on {name}, {sweep['started'][:10]}, in {sweep['seconds']:.0f} s.{whose} "
        f"{len(sweep['runs'])} runs of {sweep['title']} by plain SGD: batches of {_series(grid['batches'])}, "
        f"learning rates {_series(grid['learning_rates'])}, {grid['tuning_seeds']} seeds at every rate and "
        f"{grid['seeds']} at those that matter, {sweep['samples']:,} samples to train on and {sweep['held_out']} "
        f"held out. Equal updates are {grid['updates']:,}, equal epochs {grid['epochs']}. Training times are those "
        f"of {sweep['processes']} processes at a time, of one thread each.{missing}"
    )


def _series(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:-1]) + f" and {values[-1]:.4g}"
