"""Verdicts over batch sizes: what neighbours lend each other, what they may not, and
what is said of it.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.bench.store.regressions import (
    ACCURACY,
    EQUIVALENT,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    LATENCY,
    MEMORY,
    REGRESSED,
    UNCONFIRMED,
)
from batchline.bench.verdicts import gate
from batchline.bench.verdicts.gate import Floor
from batchline.bench.verdicts.paired import (
    describe_parts,
    over_batches,
    wants_more,
)
from tests import traces

LEAST = Floor(0.01, "least")
BATCHES = (1, 2, 4, 8, 16, 32)
SLOWER = [0.05, 0.06, 0.07, 0.08, 0.09]
EQUAL = [0.001, -0.001, 0.002, -0.002, 0.0]
UP = [
    0.02,
    0.08,
    0.02,
    0.08,
    0.05,
]  # mean .05, standard error .0134: p = .02, not flagged at five pairs
DOWN = [0.08, 0.02, 0.08, 0.02, 0.05]  # with UP, 0.05 in every pair


def named(*rows, variant="triton_tiled"):
    return {
        f"bmm/{variant}/square/float16/B{batch}": row
        for batch, row in zip(BATCHES, rows)
    }


def found(ratios, quantity=LATENCY):
    return over_batches(ratios, dict.fromkeys(ratios, LEAST), quantity)


def told(*rows):
    (kernel,) = found(named(*rows))
    return kernel.verdict, kernel.words


def wanted(ratios):
    return {
        name.rpartition("/B")[2]
        for name in wants_more(ratios, dict.fromkeys(ratios, LEAST))
    }


def decided(*rows):
    ratios = named(*rows)
    return [
        one.verdict
        for one in gate.decide(ratios, dict.fromkeys(ratios, LEAST)).values()
    ]


def test_the_verdicts_of_the_cases_stand():
    (kernel,) = found(named(SLOWER * 2, SLOWER * 2, EQUAL, EQUAL))
    assert (kernel.id, kernel.quantity) == ("bmm/triton_tiled/square/float16", LATENCY)
    assert (kernel.verdict, kernel.words) == (
        REGRESSED,
        "slower for B ≤ 2 (+7.3%), equal above",
    )
    assert kernel.parts == (
        {
            "first": 1,
            "last": 2,
            "verdict": REGRESSED,
            "effect": pytest.approx(math.expm1(0.07)),
        },
        {"first": 4, "last": 8, "verdict": EQUIVALENT, "effect": pytest.approx(0.0)},
    )


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([EQUAL, EQUAL], (EQUIVALENT, "equal at every B")),
        (
            [[-ratio for ratio in SLOWER * 2], EQUAL],
            (IMPROVED, "faster at B = 1 (-6.8%), equal above"),
        ),
        (
            [SLOWER * 2, [-ratio for ratio in SLOWER * 2]],
            (REGRESSED, "slower at B = 1 (+7.3%), faster at B = 2 (-6.8%)"),
        ),
        ([SLOWER, EQUAL[:4]], (INCONCLUSIVE, "undecided at B = 1, not judged above")),
        ([EQUAL, EQUAL[:4]], (INCONCLUSIVE, "equal at B = 1, not judged above")),
        ([EQUAL[:4], EQUAL[:4]], (INVALID, "not judged at every B")),
        ([EQUAL[:4], []], (INVALID, "not judged at every B")),
    ],
)
def test_the_verdict_is_the_worst_and_no_verdict_where_some_are_missing(rows, expected):
    assert told(*rows) == expected


def test_one_batch_size_is_no_kernel_and_batch_sizes_are_in_order_however_they_come():
    assert found(named(SLOWER)) == ()
    assert found({}) == ()
    back = dict(reversed(named(EQUAL, EQUAL, SLOWER * 2).items()))
    assert found(back)[0].words == "slower at B = 4 (+7.3%), equal below"


def test_neighbours_that_are_too_noisy_alone_are_slower_together():
    assert decided(UP * 2, DOWN * 2) == [UNCONFIRMED, UNCONFIRMED]
    assert told(UP * 2, DOWN * 2, EQUAL) == (
        REGRESSED,
        "slower for B ≤ 2 (+5.1%), equal above",
    )
    assert told(*([-ratio for ratio in row * 2] for row in (UP, DOWN))) == (
        IMPROVED,
        "faster at every B (-4.9%)",
    )


def test_what_is_found_together_is_confirmed_by_the_next_pairs_alone():
    assert told(UP, DOWN) == (INCONCLUSIVE, "undecided at every B")
    new = [0.0, 0.06, 0.0, 0.06, 0.01]  # t = 1.2; of all ten pairs 3.7
    assert told(UP + new, DOWN + new)[0] == INCONCLUSIVE


def test_a_flagged_stretch_wants_the_pairs_that_confirm_it_and_no_more():
    assert wanted(named(UP, DOWN, EQUAL)) == {"1", "2"}
    assert wanted(named(UP * 2, DOWN * 2, EQUAL)) == set()
    assert wanted(named(EQUAL, EQUAL)) == set()


def test_flagged_at_twenty_wants_its_cases_after_their_own_verdicts():
    shared = [0.03, 0.0] * 5 + [0.02, 0.022] * 5  # t at 10: 1.0, at 20: 3.5
    rows = [
        [ratio + sign * 0.03 for ratio, sign in zip(shared, signs * 10)]
        for signs in ((1, 1, -1, -1), (-1, -1, 1, 1))
    ]
    ratios = named(*rows)
    assert all(
        one.decided
        for one in gate.decide(ratios, dict.fromkeys(ratios, LEAST)).values()
    )
    assert wanted(ratios) == {"1", "2"}
    new = named(*(row + [0.03] * 10 for row in rows))
    assert (told(*new.values())[0], wanted(new)) == (REGRESSED, set())
    none = named(*(row + [0.0] * 10 for row in rows))
    assert (told(*none.values())[0], wanted(none)) == (INCONCLUSIVE, set())


def test_no_stretch_spans_a_case_that_is_equal_or_points_the_other_way():
    assert told(UP * 2, EQUAL * 2, DOWN * 2)[0] == INCONCLUSIVE
    apart = [
        [0.1 + ratio for ratio in UP],
        [ratio - 0.1 for ratio in DOWN],
    ]  # flagged at five, then one points down
    assert told(UP + apart[0], DOWN + apart[1])[0] == INCONCLUSIVE
    much, less = [0.4 + ratio for ratio in UP], [
        ratio - 0.06 for ratio in DOWN
    ]  # the mean is far over the floor
    assert told(much * 2, less * 2)[1].startswith("slower at B = 1")


def test_a_case_that_was_equal_lends_no_strength_though_later_pairs_say_otherwise():
    noise = [0.04, -0.04] * 10
    equal = EQUAL + [0.1 - extra for extra in noise[5:]]
    assert told(equal, [0.02 + extra for extra in noise]) == (
        INCONCLUSIVE,
        "equal at B = 1, undecided above",
    )


def test_a_case_that_proves_equal_after_its_stretch_was_found_is_equal():
    noise = [0.006, -0.006] * 10
    first, second = ([0.0125 + sign * extra for extra in noise] for sign in (1, -1))
    assert told(first[:10], second[:10]) == (REGRESSED, "slower at every B (+1.3%)")
    back = [ratio if pair < 10 else ratio - 0.0175 for pair, ratio in enumerate(first)]
    assert told(back, second) == (REGRESSED, "slower at B = 2 (+1.3%), equal below")


def test_of_overlapping_stretches_the_narrowest_say_where():
    wide = [
        0.02,
        0.0,
        0.02,
        0.0,
        0.015,
    ]  # mean .011, over its floor by little: all three together are as well
    assert (
        told(UP * 2, DOWN * 2, wide * 2)[1]
        == "slower for B ≤ 2 (+5.1%), undecided above"
    )


def test_a_pair_counts_only_where_all_of_the_stretch_have_it():
    lacking = [None, *DOWN[1:]]
    assert wanted(named(UP, lacking)) == set()  # four pairs give no verdict
    assert wanted(named(UP * 2, lacking + DOWN)) == {"1", "2"}


def test_more_batch_sizes_ask_for_more_evidence():
    noisy = [
        ratio + 20 * extra for ratio, extra in zip(UP, EQUAL)
    ]  # p = .0025, of 1 stretch and of 15
    assert wanted(named(noisy, DOWN)) == {"1", "2"}
    assert wanted(named(noisy, DOWN, EQUAL, EQUAL, EQUAL, EQUAL)) == set()


def test_more_kernels_ask_for_more_evidence():
    ratios = named([ratio + 8 * extra for ratio, extra in zip(UP, EQUAL)], DOWN)
    assert wanted(ratios) == {"1", "2"}
    for number in range(1000):
        ratios |= named(EQUAL, EQUAL, variant=f"v{number}")
    assert wanted(ratios) == set()


def test_each_case_is_held_against_its_own_floor():
    ratios = named(UP * 2, DOWN * 2)
    floors = dict(zip(ratios, (LEAST, Floor(0.06, "A/A"))))
    assert over_batches(ratios, floors)[0].verdict == INCONCLUSIVE
    low = [
        0.011 + ratio - 0.05 + 3 * extra for ratio, extra in zip(UP, EQUAL)
    ]  # each is just over its own
    ratios = named(low * 2, [ratio - 0.004 for ratio in DOWN] * 2)
    floors = dict(zip(ratios, (LEAST, Floor(0.045, "A/A"))))
    assert over_batches(ratios, floors)[0].verdict == INCONCLUSIVE


@pytest.mark.parametrize(
    "quantity, expected",
    [
        (MEMORY, "more memory for B ≤ 2 (+7.3%), equal above"),
        (ACCURACY, "less accurate for B ≤ 2 (+7.3%), equal above"),
    ],
)
def test_each_quantity_has_its_words(quantity, expected):
    (kernel,) = found(named(SLOWER * 2, SLOWER * 2, EQUAL), quantity)
    assert (kernel.quantity, kernel.words) == (quantity, expected)


def parts(*stretches):
    return tuple(
        {"first": first, "last": last, "verdict": verdict, "effect": 0.072}
        for first, last, verdict in stretches
    )


@pytest.mark.parametrize(
    "told, expected",
    [
        (parts((1, 64, REGRESSED)), "slower at every B (+7.2%)"),
        (
            parts((1, 2, INCONCLUSIVE), (4, 64, EQUIVALENT)),
            "undecided for B ≤ 2, equal above",
        ),
        (
            parts((1, 2, INCONCLUSIVE), (4, 8, REGRESSED), (16, 64, INCONCLUSIVE)),
            "slower for 4 ≤ B ≤ 8 (+7.2%), undecided elsewhere",
        ),
        (
            parts((1, 2, REGRESSED), (4, 8, EQUIVALENT), (16, 64, INCONCLUSIVE)),
            "slower for B ≤ 2 (+7.2%), equal for 4 ≤ B ≤ 8, undecided for B ≥ 16",
        ),
        (
            parts(
                (1, 1, REGRESSED),
                (2, 2, EQUIVALENT),
                (4, 4, INCONCLUSIVE),
                (8, 64, EQUIVALENT),
            ),
            "slower at B = 1 (+7.2%), elsewhere equal at 5, undecided at 1 of 7 batch sizes",
        ),
        (
            parts((1, 1, EQUIVALENT), (2, 2, INCONCLUSIVE), (4, 64, EQUIVALENT)),
            "equal at 6, undecided at 1 of 7 batch sizes",
        ),
    ],
)
def test_the_words_name_each_stretch_that_changed_and_sum_up_the_rest(told, expected):
    counts = {}
    for part in told:
        sizes = int(math.log2(part["last"] / part["first"])) + 1
        counts[part["verdict"]] = counts.get(part["verdict"], 0) + sizes
    assert describe_parts(told, counts) == expected


def simulated(noise, seed, changes, kernels=1):
    ratios = traces.session(
        np.random.default_rng(seed), noise, np.tile(changes, kernels)
    ).tolist()
    names = [
        name
        for number in range(kernels)
        for name in named(*BATCHES, variant=f"v{number}")
    ]
    return dict(zip(names, ratios))


def test_a_small_change_at_all_sizes_is_seen_where_no_case_shows_it():
    alone = together = 0
    for seed in range(60):
        ratios = simulated(traces.DOUBLE, seed, np.full(len(BATCHES), 0.03), kernels=1)
        cases = gate.decide(ratios, dict.fromkeys(ratios, LEAST)).values()
        alone += any(case.verdict == REGRESSED for case in cases)
        together += found(ratios)[0].verdict == REGRESSED
    assert together >= alone + 10


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**16),
    st.lists(st.sampled_from([-0.04, 0.0, 0.02, 0.04]), min_size=6, max_size=6),
)
def test_no_case_contradicts_its_kernel(seed, changes):
    ratios = simulated(traces.NOTES, seed, np.array(changes))
    cases = gate.decide(ratios, dict.fromkeys(ratios, LEAST))
    (kernel,) = found(ratios)
    for batch, case in zip(BATCHES, cases.values()):
        (part,) = [
            part for part in kernel.parts if part["first"] <= batch <= part["last"]
        ]
        assert case.verdict in (INCONCLUSIVE, UNCONFIRMED, part["verdict"])
        assert part["verdict"] != REGRESSED or part["effect"] > LEAST.share


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(gate.STAGES))
def test_the_pairs_that_other_kernels_still_get_change_nothing(seed, pairs):
    whole = simulated(
        traces.NOTES, seed, np.array([0.03, 0.03, 0.03, 0.0, 0.0, 0.0]), kernels=2
    )
    cut = {name: row[:pairs] for name, row in whole.items()}
    assert (
        found(cut)[0]
        == found(
            {
                name: row[:pairs] if "/v0/" in name else row
                for name, row in whole.items()
            }
        )[0]
    )
