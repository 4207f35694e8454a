"""What beats the baseline is measured again in a process of its own: a gain that is not
there is not published.
"""

import itertools
import random

import pytest

from batchline.bench.cases import PROFILES
from batchline.bench.measure.worker.task import OWN_FAULT, Outcome
from batchline.bench.running.after_cases import Confirming, to_try, winners
from batchline.bench.statuses import CRASHED, FAILED, INVALID, MEASURED, WRONG
from batchline.bench.store import run_json
from batchline.bench.store.formats import OURS
from batchline.bench.verdicts import ranking
from tests.test_crossovers import record

BASELINES = {"bmm": "torch_bmm"}
PUBLISHED = [record("torch_bmm", batch, 8e-6, clock="host") for batch in (1, 3, 8)] + [
    record("quick", 1, 2e-6, clock="host"),
    record("quick", 3, 1e-6, clock="host"),
    record("quick", 8, 4e-6, clock="host"),
    record("slow", 1, 9e-6, clock="host"),
    record("bit", 3, 7.5e-6, clock="host"),
]


class Workers:
    """Fresh processes, in which `again` says what becomes of a variant: seconds, or an
    Outcome; one for each try.
    """

    def __init__(self, again):
        self.again = {name: list(outcomes) for name, outcomes in again.items()}
        self.asked, self.renewed = [], 0

    def renew(self):
        self.renewed += 1

    def measure(self, task):
        assert not task.probes and len(task.entries) == 2
        self.asked.append((task.entries[1][1], task.batch))
        return {label: self._outcome(variant) for label, variant in task.entries}

    def _outcome(self, variant):
        again = self.again[variant]
        outcome = again.pop(0) if len(again) > 1 else again[0]
        return (
            outcome
            if isinstance(outcome, Outcome)
            else Outcome(MEASURED, "", record(variant, 1, outcome).samples_s)
        )


def confirmed(again, run_s=100.0, times_s=None, published=PUBLISHED):
    workers = Workers({"torch_bmm": [8e-6], "bit": [7.5e-6]} | again)
    clock = itertools.chain(times_s, itertools.repeat(times_s[-1])) if times_s else None
    confirming = Confirming(
        workers,
        PROFILES["smoke"],
        run_s,
        (lambda: next(clock)) if clock else lambda: 0.0,
    )
    return confirming.confirmations(published, BASELINES), workers


def test_of_each_winner_the_largest_gain_is_tried_first_and_then_any():
    found = winners(PUBLISHED, BASELINES)
    assert [(one.record.variant, one.record.batch) for one in found] == [
        ("quick", 3),
        ("quick", 1),
        ("quick", 8),
        ("bit", 3),
    ]
    orders = {
        tuple(one.record.batch for one in to_try(found, random.Random(seed))[0])
        for seed in range(20)
    }
    assert orders == {(3, 1, 8), (3, 8, 1)}


def test_where_the_baseline_takes_no_part_pytorchs_fastest_is_beaten():
    timed = [
        record("torch_upcast", 1, 4e-6, backend="torch"),
        record("torch_loop", 1, 9e-6, backend="torch"),
        record("quick", 1, 1e-6),
    ]
    (one,) = winners(timed, BASELINES)
    assert (one.record.variant, one.baseline.variant) == ("quick", "torch_upcast")


def test_a_gain_that_is_there_again_is_confirmed():
    results, workers = confirmed({"quick": [1.2e-6]})
    first, second, bit = workers.asked
    assert (
        first == ("quick", 3)
        and second[0] == "quick"
        and bit == ("bit", 3)
        and workers.renewed == 3
    )
    result = results["bmm/quick/tiny_16/float32/B3"]
    assert result == {"published": pytest.approx(8), "again": pytest.approx(8 / 1.2)}
    assert not any("status" in one for one in results.values())


def test_a_gain_that_is_gone_twice_costs_the_variant_all_its_gains():
    results, workers = confirmed({"quick": [7.9e-6]})
    assert workers.asked[:3] == [("quick", 3), ("quick", 3), ("bit", 3)]
    assert results["bmm/quick/tiny_16/float32/B3"]["status"] == INVALID
    assert results["bmm/quick/tiny_16/float32/B3"]["reason"] == (
        "its gain over torch_bmm was 8.00x, and 1.01x in a process of its own"
    )
    for batch in (1, 8):
        other = results[f"bmm/quick/tiny_16/float32/B{batch}"]
        assert other["status"] == INVALID
        assert (
            "is not believed, for one was not confirmed: bmm/quick/" in other["reason"]
        )
    assert "bmm/slow/tiny_16/float32/B1" not in results


def test_gains_over_a_baseline_that_took_longer_than_alone_are_not_ranked_and_blame_nobody():
    results, workers = confirmed({"quick": [1.1e-6], "torch_bmm": [1.2e-6]})
    assert workers.asked[:2] == [("quick", 3), ("quick", 3)]
    assert results["bmm/quick/tiny_16/float32/B3"] == {
        "published": pytest.approx(8),
        "again": pytest.approx(1.2 / 1.1),
        "sank": pytest.approx(7.33, rel=0.01),
        "unranked": "its gain over torch_bmm was 8.00x, and 1.09x in a process of its own, where it takes as long as "
        "it did",
    }
    others = [results[f"bmm/quick/tiny_16/float32/B{batch}"] for batch in (1, 8)]
    assert not any("status" in one for one in others)
    tried, not_believed = sorted(others, key=lambda one: "again" not in one)
    assert tried["unranked"].endswith("where it takes as long as it did")
    assert (
        "is not believed, for one was not confirmed: bmm/quick/tiny_16/float32/B3: "
        in not_believed["unranked"]
    )


def by_batch(published_s, again_s, baseline_s=8e-6):
    """What becomes of "quick" at each batch, by what it took and takes again beside a
    baseline that took 8 us.
    """
    published = [
        record("torch_bmm", batch, 8e-6, clock="host") for batch in published_s
    ] + [
        record("quick", batch, seconds, clock="host")
        for batch, seconds in published_s.items()
    ]

    def measure(task):
        times_s = {
            "torch_bmm": baseline_s if task.batch in (3, 8) else 8e-6,
            "quick": again_s[task.batch],
        }
        return {
            label: Outcome(MEASURED, "", record(name, 1, times_s[name]).samples_s)
            for label, name in task.entries
        }

    workers = Workers({})
    workers.measure = measure
    found = Confirming(workers, PROFILES["smoke"], 100.0, lambda: 0.0).confirmations(
        published, BASELINES
    )
    return {
        batch: found.get(f"bmm/quick/tiny_16/float32/B{batch}", {})
        for batch in published_s
    }


def test_one_gain_that_sank_by_less_than_half_is_not_ranked_and_costs_no_other():
    for _ in range(20):  # which one is tried after the largest is drawn
        results = by_batch({1: 1e-6, 3: 5e-6, 8: 4e-6}, {1: 1.1e-6, 3: 9e-6, 8: 4e-6})
        assert "unranked" not in results[1] and "unranked" not in results[8]
        assert results[3] == {} or results[3] == {
            "published": pytest.approx(1.6),
            "again": pytest.approx(8 / 9),
            "sank": pytest.approx(1.8, rel=0.01),
            "unranked": "its gain over torch_bmm was 1.60x, and 0.89x in a process of its own",
        }


@pytest.mark.parametrize("largest_gone_s, is_lost", [(2.8e-6, True), (4.2e-6, False)])
def test_where_two_sank_those_that_are_no_larger_are_not_ranked(
    largest_gone_s, is_lost
):
    seen = set()
    for _ in range(100):
        results = by_batch(
            {1: 1e-6, 3: 5e-6, 8: largest_gone_s, 16: 4e-6},
            {1: 1e-6, 3: 9e-6, 8: 1.85 * largest_gone_s, 16: 4e-6},
        )
        if (
            "unranked" in results[3] and "unranked" in results[8]
        ):  # and so two are gone before two are there again
            assert (
                "again" not in results[16]
                and "again" in results[1]
                and "unranked" not in results[1]
            )
            seen.add("unranked" in results[16])
    assert seen == {is_lost}


def test_who_is_quick_only_beside_a_slow_baseline_twice_is_not_ranked_elsewhere_either():
    seen = 0
    for _ in range(100):
        results = by_batch(
            {1: 1e-6, 3: 2e-6, 8: 2e-6, 16: 1.3e-6},
            {1: 1e-6, 3: 2e-6, 8: 2e-6, 16: 1.3e-6},
            2.1e-6,
        )
        if "sank" in results[3] and "sank" in results[8]:
            assert (
                "is not believed, for one was not confirmed" in results[16]["unranked"]
            )
            seen += 1
    assert seen


def test_what_could_not_be_tried_is_no_gain_that_stayed():
    busy = Outcome(INVALID, "the machine was busy")
    results, workers = confirmed({"quick": [busy]})
    assert [batch for name, batch in workers.asked if name == "quick"][0] == 3
    assert {batch for name, batch in workers.asked if name == "quick"} == {1, 3, 8}


def test_a_gain_that_sank_far_is_blamed_at_once():
    results, _ = confirmed(
        {"quick": [4e-6]},
        published=[
            *PUBLISHED,
            record("torch_bmm", 16, 8e-6, clock="host"),
            record("quick", 16, 0.99e-6, clock="host"),
        ],
    )
    assert {
        results[f"bmm/quick/tiny_16/float32/B{batch}"]["status"]
        for batch in (1, 3, 8, 16)
    } == {INVALID}


def test_once_is_not_twice():
    results, workers = confirmed({"quick": [7.9e-6, 1e-6]})
    assert workers.asked[:2] == [("quick", 3), ("quick", 3)]
    assert not any("status" in one for one in results.values())


@pytest.mark.parametrize("again", [9e-6, 9.2e-6])
def test_a_small_gain_that_another_process_does_not_have_is_luck(again):
    results, _ = confirmed({"quick": [1e-6], "bit": [again]})
    assert "status" not in results["bmm/bit/tiny_16/float32/B3"]


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(INVALID, "the machine was busy: other processes took 40% of the cores"),
        Outcome(FAILED, f"{OWN_FAULT}KeyError: 'x'"),
    ],
)
def test_what_says_nothing_of_the_variant_blames_nobody(outcome):
    results, _ = confirmed({"quick": [outcome]})
    result = results["bmm/quick/tiny_16/float32/B3"]
    assert result == {
        "published": pytest.approx(8),
        "why_not": f"{outcome.status}: {outcome.reason}",
    }


def test_a_baseline_without_a_time_confirms_nothing():
    results, _ = confirmed(
        {
            "quick": [7.9e-6],
            "torch_bmm": [Outcome(CRASHED, "its process was ended by SIGSEGV")],
        }
    )
    assert {result.get("why_not") for result in results.values()} == {
        "crashed: its process was ended by SIGSEGV"
    }


def test_who_is_wrong_or_ends_its_process_there_is_refused_for_that():
    results, _ = confirmed(
        {"quick": [Outcome(WRONG, "on tiny_16 at B=3: it changed its inputs")]}
    )
    result = results["bmm/quick/tiny_16/float32/B3"]
    assert result["status"] == WRONG and result["reason"] == (
        "measured as 8.00x, and in a process of its own: on tiny_16 at B=3: it changed its inputs"
    )


def test_it_takes_a_tenth_of_the_runs_time_and_ten_seconds_at_least():
    assert (
        len(confirmed({"quick": [1e-6]}, 1000.0, (0.0, 1.0, 2.0, 99.0))[1].asked) == 3
    )
    assert (
        len(confirmed({"quick": [1e-6]}, 1000.0, (0.0, 1.0, 2.0, 101.0))[1].asked) == 2
    )
    assert (
        len(confirmed({"quick": [1e-6]}, 1000.0, (0.0, 1.0, 101.0, 102.0))[1].asked)
        == 1
    )
    assert len(confirmed({"quick": [1e-6]}, 10.0, (0.0, 9.0, 9.5, 11.0))[1].asked) == 2


def test_records_carry_what_was_confirmed_and_lose_what_was_refuted():
    names = [record(variant, 3, 1e-6).id for variant in ("torch_bmm", "quick", "bit")]
    bench = {
        "stats": {"data": [1e-6] * 6, "iterations": 1},
        "extra_info": {"clock": "host"},
    }
    document = {
        "machine_info": {OURS: {}},
        "benchmarks": [bench | {"param": name} for name in names],
        OURS: {
            "cases": [{"id": name, "status": MEASURED, "reason": ""} for name in names],
            "confirmed": {
                names[1]: {
                    "published": 8.0,
                    "again": 1.0,
                    "status": INVALID,
                    "reason": "its gain is gone",
                },
                names[2]: {"published": 1.1, "again": 1.05, "unranked": "why"},
            },
        },
    }
    baseline, quick, bit = run_json.parse(document).records
    assert baseline.status == MEASURED and "confirmed" not in baseline.facts
    assert (quick.status, quick.reason, quick.samples_s) == (
        INVALID,
        "its gain is gone",
        (),
    )
    assert bit.status == MEASURED and bit.facts == {
        "clock": "host",
        "confirmed": {"published": 1.1, "again": 1.05, "unranked": "why"},
    }
    assert ranking.why_unranked(bit) == "why" and not ranking.may_win(bit)
