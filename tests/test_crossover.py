"""Where fused statistics overtake ghost norms: on times that follow the law, and on
every way of having no crossing.
"""

from dataclasses import replace

import pytest

from batchline.bench.records import MEASURED, Record
from batchline.bench.report.sections import choices
from batchline.bench.verdicts import crossover

SIZES = {f"T{tokens}": {"T": tokens, "I": 512, "O": 512} for tokens in (1, 4, 16, 64)}


def _records(ghost, fused, variant="numba_cpu_fused", batch=64):
    for name, size in SIZES.items():
        for which, law in (("torch_ghost", ghost), (variant, fused)):
            yield Record(
                "wgrad_stats",
                which,
                name,
                "float32",
                batch,
                MEASURED,
                samples_s=(law(size["T"]),),
            )


def _only(records):
    (crossing,) = crossover.crossings(list(records), SIZES)
    return crossing


@pytest.mark.parametrize("true", [2.0, 10.0, 40.0])
def test_the_crossing_of_two_powers_is_found(true):
    crossing = _only(
        _records(
            lambda tokens: 1e-4 * tokens**2,
            lambda tokens: 1e-4 * true**1.5 * tokens**0.5,
        )
    )
    assert crossing.tokens == pytest.approx(true)
    assert crossing.between[0] <= true <= crossing.between[1]


def test_the_predicted_range():
    assert crossover.predicted(512, 512) == (16, 80)


def test_one_that_leads_throughout_is_said():
    assert (
        choices._measured(_only(_records(lambda _: 2.0, lambda _: 1.0)))
        == "fused leads from T=1 on"
    )
    assert (
        choices._measured(_only(_records(lambda _: 1.0, lambda _: 2.0)))
        == "ghost leads up to T=64"
    )


def test_the_fastest_form_of_ghost_norms_that_is_ranked_is_the_one_that_is_beaten():
    records = [
        *_records(lambda _: 4.0, lambda _: 2.0),
        *_records(lambda _: 0.1, lambda _: 2.0),
    ]
    renamed = [
        replace(one, variant="torch_ghost_3xbf16") if one.samples_s == (0.1,) else one
        for one in records
    ]
    assert {ratio for _, ratio in _only(renamed).ratios} == {0.05}
    unranked = [
        replace(one, facts={"tolerance_multiple": 17.0}) if "3x" in one.variant else one
        for one in renamed
    ]
    assert {ratio for _, ratio in _only(unranked).ratios} == {2.0}


def test_batches_and_gpu_kernels_are_apart():
    records = [
        *_records(lambda _: 1.0, lambda _: 2.0),
        *_records(lambda _: 1.0, lambda _: 2.0, batch=8),
        *_records(lambda _: 1.0, lambda _: 2.0, variant="triton_fused"),
    ]
    found = crossover.crossings(records, SIZES)
    assert {(crossing.batch, crossing.fused) for crossing in found} == {
        (64, "numba_cpu_fused"),
        (8, "numba_cpu_fused"),
        (64, "triton_fused"),
    }


def test_a_single_length_shows_nothing():
    records = [
        record
        for record in _records(lambda _: 1.0, lambda _: 2.0)
        if record.scenario == "T4"
    ]
    assert crossover.crossings(records, SIZES) == []
