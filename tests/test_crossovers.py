"""Crossovers in batch size and in tokens, the choices that follow, and the batch sizes
to add.
"""

import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import binomtest

from batchline.bench.cases import refined
from batchline.bench.report.sections import choices as section
from batchline.bench.statuses import FAILED, MEASURED
from batchline.bench.store import run_json
from batchline.bench.store.journal import _in_order
from batchline.bench.store.records import Record
from batchline.bench.verdicts import crossovers
from batchline.bench.verdicts.crossovers import (
    batches_to_add,
    best,
    choices,
    leader,
    root,
)
from batchline.kernels.backends import DISPATCH
from tests.plans import planned

BATCHES = (1, 3, 8, 33, 64, 256, 1024)


def record(variant, batch, seconds, spread=0.001, count=20, **facts):
    """Samples evenly about the median, so that it is `seconds`."""
    samples = tuple(
        seconds * (1 + spread * (2 * number / (count - 1) - 1))
        for number in range(count)
    )
    return Record(
        "bmm",
        variant,
        "tiny_16",
        "float32",
        batch,
        MEASURED,
        samples_s=samples,
        facts=facts,
    )


def line(variant, launch_s, sample_s, batches=BATCHES, **how):
    return [
        record(variant, batch, launch_s + sample_s * batch, **how) for batch in batches
    ]


def test_two_lines_meet_where_they_meet():
    # 10 + B and 30 + B/2 µs are equal at B = 40
    (found,) = crossovers.crossovers(
        [*line("quick", 10e-6, 1e-6), *line("steady", 30e-6, 0.5e-6)]
    )
    assert (found.first, found.then, found.up_to, found.from_) == (
        "quick",
        "steady",
        33,
        64,
    )
    assert (
        found.batch == pytest.approx(40, rel=1e-9)
        and found.low < 40 < found.high
        and found.undecided == ()
    )


def test_batches_in_between_that_are_not_told_apart_are_the_undecided_band():
    (found,) = crossovers.crossovers(
        [
            *line("quick", 10e-6, 1e-6, (8, 40, 41, 256)),
            *line("steady", 30e-6, 0.5e-6, (8, 40, 41, 256)),
        ]
    )
    assert found.undecided == (40, 41) and (found.up_to, found.from_) == (8, 256)
    assert found.batch == pytest.approx(40, rel=0.05) and found.low < 40 < found.high


def test_a_leader_that_comes_back_overtakes_twice():
    times = {"a": (1, 1, 3, 3, 1), "b": (2, 2, 2, 2, 2)}
    found = crossovers.crossovers(
        [
            record(name, batch, seconds * 1e-5)
            for name, row in times.items()
            for batch, seconds in zip(BATCHES, row)
        ]
    )
    assert [(one.first, one.then, one.up_to, one.from_) for one in found] == [
        ("a", "b", 3, 8),
        ("b", "a", 33, 64),
    ]


@pytest.mark.parametrize(
    "a, b, ahead",
    [(1.0, 1.1, "a"), (1.1, 1.0, "b"), (1.0, 1.015, None), (1.015, 1.0, None)],
)
def test_a_tie_is_nobodys(a, b, ahead):
    assert leader(record("a", 1, a * 1e-5), record("b", 1, b * 1e-5)) == ahead


def test_noisy_samples_leave_it_open():
    assert (
        leader(record("a", 1, 1e-5, spread=0.3), record("b", 1, 1.1e-5, spread=0.3))
        is None
    )
    assert (
        leader(record("a", 1, 1e-5, count=5), record("b", 1, 2e-5)) is None
    )  # too few samples for an interval


def test_what_has_no_time_or_gives_a_part_takes_no_part():
    failed = Record("bmm", "fails", "tiny_16", "float32", 1, FAILED)
    assert crossovers.crossovers([failed, *line("a", 1e-5, 1e-7)]) == []
    records = [
        *line("a", 1e-5, 1e-7, (1, 64)),
        *line("half", 1e-6, 1e-6, (1, 64), gives=1),
    ]
    assert crossovers.crossovers(records) == [] and {
        one.variant for one in best(records)
    } == {"a"}


def test_the_best_says_how_it_stands_to_pytorchs_fastest_and_who_is_as_good():
    records = [
        record("torch_bmm", 1, 1e-5, backend="torch"),
        record("ours", 1, 0.99e-5),
        record("torch_bmm", 64, 9e-5, backend="torch"),
        record("torch_folded", 64, 2e-5, backend="torch"),
        record("ours", 64, 1e-5),
        record("twin", 64, 1.01e-5),
        record("alone", 256, 1e-5),
    ]
    one, many, last = best(records)
    assert (one.variant, one.opponent, one.alike) == (
        "ours",
        "torch_bmm",
        ("torch_bmm",),
    )
    assert (many.variant, many.opponent, many.alike) == (
        "ours",
        "torch_folded",
        ("twin",),
    )
    assert many.speed_up == pytest.approx(2) and (last.speed_up, last.opponent) == (
        None,
        None,
    )


def test_a_choice_is_ahead_of_pytorchs_fastest_and_not_of_a_slow_baseline_alone():
    """Ours beats the baseline three times over; a way of PyTorch's with a bound of its
    own is as fast again.
    """

    def problem(seconds, **facts):
        return [
            record(
                name, batch, of, backend=name.partition("_")[0], **facts.get(name, {})
            )
            for batch in (1, 8)
            for name, of in seconds.items()
        ]

    times = {"torch_bmm": 3e-5, "ours": 1e-5, "torch_split": 0.5e-5}
    own = {"own_tolerance": True, "tolerance_multiple": 4.0}
    (choice,) = choices(problem(times, torch_split=own), {"bmm": "torch_bmm"})
    assert (choice.variant, choice.is_ahead, choice.behind) == (
        "ours",
        False,
        ("torch_split",),
    )
    (choice,) = choices(
        problem(times, torch_split=own | {"tolerance_multiple": 17.0}),
        {"bmm": "torch_bmm"},
    )
    assert (choice.variant, choice.is_ahead, choice.behind) == (
        "ours",
        True,
        (),
    )  # it is not ranked
    (choice,) = choices(
        problem(times | {"torch_split": 2e-5}, torch_split=own), {"bmm": "torch_bmm"}
    )
    assert (choice.variant, choice.is_ahead, choice.behind) == ("ours", True, ())


def test_who_keeps_another_error_bound_or_hands_on_is_not_chosen():
    records = [
        record("torch_bmm", 1, 3e-5),
        record("loose", 1, 1e-5, own_tolerance=True),
        record("hands_on", 1, 2e-5, backend=DISPATCH),
    ]
    assert [one.variant for one in best(records)] == ["torch_bmm"]


def covered(draw, launch_s, sample_s):
    """Medians with 1% of noise around two lines that meet at 40; whether the interval
    holds it, None without one.
    """
    points = []
    for batch in (8, 33, 64, 256):
        times = [
            (launch + cost * batch)
            for launch, cost in ((10e-6, 1e-6), (launch_s, sample_s))
        ]
        noisy = [seconds * math.exp(draw.gauss(0, 0.01)) for seconds in times]
        points.append((batch, noisy[0] - noisy[1], 0.01 * math.hypot(*times)))
    signs = [math.copysign(1, difference) for _, difference, _ in points]
    if signs != [-1, -1, 1, 1]:
        return None
    _, low, high = root(points[1:3])
    return low <= 40 <= high


@pytest.mark.parametrize("launch_s, sample_s", [(30e-6, 0.5e-6), (46e-6, 0.1e-6)])
def test_the_interval_covers_the_truth_in_95_of_100(launch_s, sample_s):
    draw = random.Random(7)
    outcomes = [
        hit
        for _ in range(4000)
        if (hit := covered(draw, launch_s, sample_s)) is not None
    ]
    assert len(outcomes) > 3900
    interval = binomtest(sum(outcomes), len(outcomes)).proportion_ci(0.99)
    assert interval.low > 0.93 and interval.high < 0.97


def test_a_flat_difference_has_no_root_inside():
    assert root([(8, 1e-6, 1e-7), (64, 1e-6, 1e-7)]) == (36, 8, 64)


def test_the_choice_changes_only_where_the_evidence_asks_for_it():
    times = {
        "torch_bmm": (1.00, 1.00, 2.0, 3.0, 4.0),
        "ours": (0.99, 1.01, 1.0, 2.98, 2.0),
        "twin": (3.00, 3.00, 1.01, 2.99, 1.99),
    }
    records = [
        record(name, batch, seconds * 1e-5)
        for name, row in times.items()
        for batch, seconds in zip(BATCHES, row)
    ]
    assert [
        (one.variant, one.first, one.last)
        for one in choices(records, {"bmm": "torch_bmm"})
    ] == [("torch_bmm", 1, 3), ("ours", 8, 64)]
    assert [one.variant for one in choices(records, {})] == ["ours"]


def test_choices_start_anew_with_each_problem():
    other = [
        Record("bmm", "ours", "tiny_4", "float32", 1, MEASURED, samples_s=(1e-5,) * 9)
    ]
    found = choices([record("ours", 1, 1e-5), *other], {})
    assert [(one.scenario, one.first, one.last) for one in found] == [
        ("tiny_16", 1, 1),
        ("tiny_4", 1, 1),
    ]


def test_samples_without_any_spread_meet_all_the_same():
    records = [
        *line("quick", 10e-6, 1e-6, spread=0.0),
        *line("steady", 30e-6, 0.5e-6, spread=0.0),
    ]
    (found,) = crossovers.crossovers(records)
    assert (found.batch, found.low, found.high) == pytest.approx((40, 40, 40))


BASELINES = {"bmm": "torch_bmm"}
GROUP = "bmm", "tiny_16", "float32"
FIRST_BATCHES = (1, 4, 16, 64, 256, 1024, 4096)


def curve(variant, seconds_of, batches=FIRST_BATCHES):
    return [
        Record(
            "bmm",
            variant,
            "tiny_16",
            "float32",
            batch,
            MEASURED,
            samples_s=tuple(
                seconds_of(batch) * (1 + index * 1e-4) for index in range(-10, 11)
            ),
            facts={"clock": "host", "backend": "torch"},
        )
        for batch in batches
    ]


def test_around_a_crossover():
    found = batches_to_add(
        [
            *curve("torch_bmm", lambda batch: 1e-6 + 1e-7 * batch),
            *curve("fast", lambda batch: 5e-6 + 5e-8 * batch),
        ],
        BASELINES,
    )
    assert found == {GROUP: (72, 80, 143)}  # they meet at 80, between 64 and 256


def test_beside_a_cliff_of_what_is_chosen():
    def cliff(batch):
        return (1e-6 + 1e-7 * batch) * (1.6 if batch == 64 else 1)

    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert batches_to_add(curve("torch_bmm", cliff, batches), BASELINES) == {
        GROUP: (63, 65)
    }
    slower = curve("slow", lambda batch: 3 * cliff(batch), batches)
    assert (
        batches_to_add(
            [*curve("torch_bmm", lambda batch: 1e-6 + 1e-7 * batch, batches), *slower],
            BASELINES,
        )
        == {}
    )


@pytest.mark.parametrize(
    "seconds_of", [lambda batch: 1e-6 + 1e-7 * batch, lambda batch: 1e-6]
)
def test_nothing_where_nothing_changes(seconds_of):
    assert batches_to_add(curve("torch_bmm", seconds_of), BASELINES) == {}
    assert batches_to_add([], BASELINES) == {}


def test_neighbours_have_nothing_between_them():
    rows = [
        *curve("torch_bmm", lambda batch: 1e-6 * batch**2, (1, 2)),
        *curve("fast", lambda batch: 2e-6, (1, 2)),
    ]
    assert batches_to_add(rows, BASELINES) == {}


@pytest.mark.commands
def test_the_plan_of_what_is_added():
    whole = planned("full", "cpu")
    more = refined(whole, {GROUP: (72, 80)})
    assert {case.problem for case in more.cases} == {(*GROUP, 72), (*GROUP, 80)}
    variants = {
        case.variant.name for case in whole.cases if case.problem == (*GROUP, 64)
    }
    assert {case.variant.name for case in more.cases} == variants


def test_the_added_cases_stand_in_their_groups_by_batch():
    cases = [
        Record("bmm", variant, scenario, "float32", batch, FAILED)
        for scenario in ("tiny_16", "tiny_4")
        for batch in (1, 8)
        for variant in ("torch_bmm", "fast")
    ]
    added = [
        Record("bmm", variant, "tiny_16", "float32", 3, FAILED)
        for variant in ("torch_bmm", "fast")
    ]
    in_order = list(_in_order(cases + added))
    assert in_order == [*cases[:2], *added, *cases[2:]]


@pytest.mark.slow
def test_a_run_that_refines_measures_them_too(tmp_path):
    program = f"""
from dataclasses import replace
from pathlib import Path
from batchline.bench import cases
from batchline.bench.running import benchmark
from batchline.bench.running.benchmark import Request
benchmark.Measurer.ceilings = lambda self: (None, "they take seconds")
cases.PROFILES["smoke"] = replace(cases.PROFILES["smoke"], refines=True)
benchmark.batches_to_add = lambda records, baselines: {{("bmm", "tiny_4", "float32"): (2,)}}
folder = Path({str(tmp_path)!r})
print(int(benchmark.benchmark(Request("smoke", "cpu", "torch_bmm and tiny"), folder, folder)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    (path,) = tmp_path.glob(f"*/{run_json.FILE_NAME}")
    found = run_json.load(path.parent)
    assert [
        (record.batch, record.status)
        for record in found.records
        if record.scenario == "tiny_4"
    ] == [(batch, MEASURED) for batch in (1, 2, 3, 16)]
    assert len(found.records) == len({record.id for record in found.records})


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
    (crossing,) = crossovers.token_crossings(list(records), SIZES)
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
    assert crossovers.predicted_tokens(512, 512) == (16, 80)


def test_one_that_leads_throughout_is_said():
    assert (
        section._measured(_only(_records(lambda _: 2.0, lambda _: 1.0)))
        == "fused leads from T=1 on"
    )
    assert (
        section._measured(_only(_records(lambda _: 1.0, lambda _: 2.0)))
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
    found = crossovers.token_crossings(records, SIZES)
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
    assert crossovers.token_crossings(records, SIZES) == []
