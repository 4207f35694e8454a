"""The gradient noise of the workloads as tables: over training, by layer, and beside
what the cosine law predicts.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchline.bench.stats.noise_scale import BOUNDED, NoiseEstimate, expected_cosine
from batchline.bench.noise.stored_survey import Moment, moments
from batchline.bench.report.tables import Style

EXPLAINED = (
    "B_simple = tr Σ/‖G‖² is the batch at which the noise of the mean gradient is as large as the gradient (McCandlish "
    "et al. 2018, arXiv:1812.06162). It is taken from independent batches drawn at that point of training, with "
    "Fieller's 95% interval of these batches; how far seeds are apart is seen beside it. Nothing is clamped. The "
    "two-batch-size estimate is from the norms of the same batches and of four put together. The tests are each a "
    "variance of ḡ over ‖ḡ‖² at that batch: of all of it (norm; Byrd et al. 2012), along ḡ and across it (inner "
    "product, orthogonality; Bollapragada et al. 2018, arXiv:1710.11258)."
)


def section(workload: Mapping, style: Style) -> str:
    """One workload: the noise over training, by layer at the last point, and the
    direction of independent batches.
    """
    found = moments(workload)
    first = found[0]
    about = (
        f"{workload['title'][0].upper()}{workload['title'][1:]}: {workload['parameters']:,} parameters, "
        f"{workload['samples']:,} samples; plain SGD at batch {workload['train_batch']} and rate "
        f"{workload['learning_rate']:g}. {len(first.by_seed)} seeds, and for each "
        f"{first.estimate.batches // len(first.by_seed)} batches of {first.estimate.batch} at each point."
    )
    return "\n\n".join(
        [
            about,
            _over_training(found, style),
            f"By layer, after {found[-1].updates} updates:",
            _by_layer(found[-1], style),
            "The cosine between the mean gradients of two independent batches, measured (and "
            "predicted, 1/(1 + B_simple/B)):",
            _direction(found, style),
        ]
    )


def summary(workload: Mapping) -> str:
    """The noise over training, in a line."""
    return "B_simple " + ", ".join(
        f"after {moment.updates} updates {moment.estimate.text()}"
        for moment in moments(workload)
    )


def _over_training(found: list[Moment], style: Style) -> str:
    headers = [
        "updates",
        "loss",
        "B_simple (95% interval)",
        *(f"seed {seed}" for seed in found[0].by_seed),
        "two batch sizes",
        *(f"{name} test" for name in found[0].tests),
    ]
    return style.render(
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
            for moment in found
        ),
    )


def _by_layer(moment: Moment, style: Style) -> str:
    return style.render(
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


def _direction(found: list[Moment], style: Style) -> str:
    batches = list(found[0].cosines)
    return style.render(
        ["updates", *(f"B = {batch}" for batch in batches)],
        (
            [str(moment.updates), *(_cosine(moment, batch) for batch in batches)]
            for moment in found
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
