"""The rule of the gate, on histories made by hand: stages, confirmation, verdicts, and
that history replays.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.bench.stats.pair_tests import moments
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
from batchline.bench.verdicts.gate import Floor, floor

LEAST = Floor(0.01, "least")
SLOWER = [
    0.05,
    0.06,
    0.07,
    0.08,
    0.09,
]  # mean .07, standard error .0071: t = 8.5, p = .0005
WIDE = [0.0, 0.06] * 5  # mean .03, standard error .01: not flagged at 5, nor at 10
NOTHING = [0.001, -0.001, 0.002, -0.002, 0.0]


def judge(ratios, share=LEAST.share):
    return gate.decide({"case": ratios}, {"case": Floor(share, "least")})["case"]


def alternating(mean, spread, pairs):
    """Of exactly that mean and standard deviation, of an even number of pairs."""
    return [
        mean + sign * spread * math.sqrt((pairs - 1) / pairs)
        for sign in (1, -1) * (pairs // 2)
    ]


def test_a_flagged_case_waits_for_new_pairs_and_its_figures_are_those_of_a_t_interval():
    found = judge(SLOWER)
    assert (found.verdict, found.flagged, found.decided, found.pairs) == (
        UNCONFIRMED,
        True,
        False,
        5,
    )
    margin = 2.131847 * math.sqrt(0.00025 / 5)  # t of 4 degrees of freedom at .95
    assert (found.effect, found.low, found.high) == pytest.approx(
        (math.expm1(0.07), math.expm1(0.07 - margin), math.expm1(0.07 + margin)),
        rel=1e-6,
    )


def test_flagged_at_five_is_confirmed_by_the_next_five():
    found = judge(SLOWER + SLOWER)
    assert (found.verdict, found.flagged, found.decided, found.pairs) == (
        REGRESSED,
        True,
        True,
        10,
    )
    assert found.pairs_needed is None


def test_the_next_pairs_alone_confirm_however_clear_all_of_them_are():
    ratios = SLOWER + [0.0, 0.04, 0.01, 0.03, -0.01]
    assert (
        moments(np.array([ratios])).chance_above(math.log1p(0.01))[0] < gate.LEVELS[1]
    )
    found = judge(ratios)
    assert (found.verdict, found.flagged, found.decided) == (UNCONFIRMED, True, False)


def test_flagged_at_ten_is_confirmed_by_eleven_to_twenty():
    assert judge(WIDE[:5] + SLOWER * 3).verdict == REGRESSED
    assert judge(WIDE[:5] + SLOWER * 3).pairs == 20
    assert not judge(WIDE[:5] + SLOWER * 2 + [None] * 4).decided


@pytest.mark.parametrize(
    "last, verdict",
    [
        ([0.03, 0.04] * 5, REGRESSED),
        (NOTHING * 2, UNCONFIRMED),
        ([0.03, 0.04] * 2 + [None] * 6, UNCONFIRMED),
        ([-0.06, -0.05] * 5, INCONCLUSIVE),
    ],
)
def test_flagged_at_twenty_is_confirmed_by_the_last_ten_or_not_at_all(last, verdict):
    ratios = WIDE + [0.04, 0.06] * 5
    assert (judge(ratios).flagged, judge(ratios).decided) == (True, False)
    assert (judge(ratios + last).verdict, judge(ratios + last).decided) == (
        verdict,
        True,
    )


@pytest.mark.parametrize(
    "ratios, verdict",
    [
        (
            [0.70, 0.71, 0.72, 0.73, 0.74],
            UNCONFIRMED,
        ),  # the budget ended before it could be confirmed
        (
            [-0.70, -0.71, -0.72, -0.73, -0.74],
            INCONCLUSIVE,
        ),  # faster, and not confirmed either: nobody is let down
        (WIDE, UNCONFIRMED),  # 10 pairs do not flag it, and its interval is above
        ([0.0, 0.04] * 5, INCONCLUSIVE),  # its interval has the floor inside
        ([0.02, 0.021, 0.022], INVALID),
    ],
)
def test_what_is_left_open_above_its_floor_is_unconfirmed(ratios, verdict):
    found = judge(ratios)
    assert (found.verdict, found.decided) == (verdict, False)
    assert (verdict == UNCONFIRMED) == (
        found.low is not None and found.low > found.floor
    )


def test_what_its_family_decided_is_not_left_open():
    many = {"case": WIDE * 2} | {str(number): NOTHING * 4 for number in range(99)}
    found = gate.decide(many, dict.fromkeys(many, LEAST))["case"]
    assert found.decided and found.verdict == INCONCLUSIVE and found.low > found.floor


def test_equivalent_at_five_stays_so_whatever_comes():
    assert judge(NOTHING) == judge(NOTHING + [0.5] * 25)
    assert (judge(NOTHING).verdict, judge(NOTHING).pairs, judge(NOTHING).decided) == (
        EQUIVALENT,
        5,
        True,
    )


def test_faster_is_improved_and_the_bound_is_the_floor_below():
    assert judge([-ratio for ratio in SLOWER * 2]).verdict == IMPROVED
    assert judge([math.log1p(-0.03) - 1e-9] * 10, share=0.03).verdict == IMPROVED
    assert judge([-math.log1p(0.03)] * 10, share=0.03).verdict == EQUIVALENT


@pytest.mark.parametrize(
    "ratio, verdict",
    [
        (0.05, REGRESSED),
        (0.0, EQUIVALENT),
        (math.log1p(0.01), EQUIVALENT),
        (math.log1p(0.0101), REGRESSED),
        (-0.05, IMPROVED),
    ],
)
def test_ratios_without_any_spread_are_known_exactly(ratio, verdict):
    assert judge([ratio] * 10).verdict == verdict


@pytest.mark.parametrize("share", [0.003, 0.01, 0.029, 0.137, 0.2])
@pytest.mark.parametrize("pairs", [5, 10])
def test_equal_ratios_on_the_very_floor_are_within_it(share, pairs):
    found = gate.decide(
        {"up": [math.log1p(share)] * pairs, "down": [math.log1p(-share)] * pairs},
        dict.fromkeys(("up", "down"), Floor(share, "A/A")),
    )
    assert [one.verdict for one in found.values()] == [EQUIVALENT] * 2


def test_rounding_is_no_spread_and_no_change():
    ratios = [math.log1p(0.01) + 1e-16 * number for number in (1, 2, 3, 4, 6)]
    assert not judge(ratios).flagged
    assert judge(
        [0.01 + 1e-17 * number for number in range(10)]
    ).least_detectable == pytest.approx(0.01, abs=1e-12)


def test_within_a_floor_of_more_than_everything_nothing_improves():
    assert judge([-3.0] * 10, share=1.5).verdict == EQUIVALENT


def test_no_verdict_from_fewer_than_five_pairs():
    found = judge([0.5] * 4)
    assert (found.verdict, found.decided, found.effect, found.pairs_needed) == (
        INVALID,
        False,
        None,
        5,
    )
    failing = judge([0.5] * 4 + [None] * 16)
    assert (failing.verdict, failing.decided, failing.pairs) == (INVALID, True, 4)
    assert judge([0.5] * 4 + [None] * 16 + NOTHING * 2) == failing


def test_a_failed_pair_is_left_out():
    assert not judge([None, *SLOWER[:4]]).flagged
    ratios = [None, *SLOWER, 0.05, None, None, 0.06]  # seen first at 10
    assert (judge(ratios).flagged, judge(ratios).pairs) == (True, 7)
    assert judge(SLOWER + [None, 0.05, 0.06, None, 0.05]).verdict == REGRESSED
    assert (
        judge(SLOWER + [None, 0.05, 0.06, None, None]).verdict == UNCONFIRMED
    )  # two of five confirm nothing


def test_a_case_among_many_needs_more_to_be_flagged():
    many = {"case": SLOWER} | {str(number): NOTHING for number in range(99)}
    assert judge(SLOWER).flagged
    assert not gate.decide(many, dict.fromkeys(many, LEAST))["case"].flagged


def test_cases_that_changed_together_need_less():
    many = {str(number): SLOWER if number < 60 else NOTHING for number in range(100)}
    assert gate.decide(many, dict.fromkeys(many, LEAST))["0"].flagged


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="case has a ratio that is no number"):
        judge([0.1, bad])


def test_a_case_without_a_floor_is_refused_by_name():
    with pytest.raises(ValueError, match="no floor for case"):
        gate.decide({"case": SLOWER}, {})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.01])
def test_a_floor_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="a floor is negative or no number"):
        judge(SLOWER, share=bad)


def test_no_cases_have_no_verdicts():
    assert gate.decide({}, {}) == {}


def power(test, mean, spread, pairs):
    return np.mean(
        test(moments(np.random.default_rng(3).normal(mean, spread, (20_000, pairs))))
    )


@pytest.mark.parametrize("mean, spread", [(0.02, 0.03), (0.016, 0.02), (-0.02, 0.03)])
def test_so_many_pairs_as_needed_flag_what_is_outside_the_floor_in_four_of_five_runs(
    mean, spread
):
    found = judge(alternating(mean, spread, 20))
    assert (found.verdict, found.decided) == (INCONCLUSIVE, True)
    sees = power(
        lambda sums: (
            sums.chance_above(math.log1p(0.01)) <= gate.LEVELS[-1]
            if mean > 0
            else sums.chance_below(math.log1p(-0.01)) <= gate.LEVELS[-1]
        ),
        mean,
        spread,
        found.pairs_needed,
    )
    assert sees == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("mean, spread", [(0.0, 0.03), (0.003, 0.02), (-0.006, 0.02)])
def test_so_many_pairs_as_needed_find_what_is_inside_equivalent_in_four_of_five_runs(
    mean, spread
):
    found = judge(alternating(mean, spread, 20))
    assert found.verdict == INCONCLUSIVE

    def inside(sums):
        low, high = sums.interval()
        return (low >= math.log1p(-0.01)) & (high <= math.log1p(0.01))

    assert power(inside, mean, spread, found.pairs_needed) == pytest.approx(
        0.8, abs=0.03
    )


def test_no_number_of_pairs_is_needed_where_none_would_do():
    assert judge(alternating(math.log1p(0.01) + 1e-4, 0.03, 20)).pairs_needed is None


@pytest.mark.parametrize("cases", [1, 100])
def test_the_least_detectable_change_is_flagged_in_four_of_five_runs(cases):
    spread, ratios = 0.03, {str(number): [0.0] * 20 for number in range(cases - 1)}
    ratios["case"] = alternating(0.0, spread, 20)
    least = gate.decide(ratios, dict.fromkeys(ratios, LEAST))["case"].least_detectable
    flags = power(
        lambda sums: sums.chance_above(math.log1p(0.01)) <= gate.LEVELS[-1] / cases,
        math.log1p(least),
        spread,
        20,
    )
    assert flags == pytest.approx(0.8, abs=0.015)


def test_the_floor_is_the_largest_of_three_and_says_which():
    assert floor(LATENCY, 1.0) == Floor(0.01, "least")
    assert floor(LATENCY, 1.0, noise_share=0.02) == Floor(0.02, "A/A")
    assert floor(LATENCY, 20e-6, noise_share=0.02) == Floor(pytest.approx(0.05), "1 µs")
    assert floor(LATENCY, 1.0, noise_share=0.0) == Floor(0.01, "least")
    assert floor(MEMORY, 2.0**20) == Floor(0.0625, "64 KiB")
    assert floor(ACCURACY, 0.05) == Floor(pytest.approx(0.2), "1% of the tolerance")


@pytest.mark.parametrize(
    "asked",
    [
        ("speed", 1.0),
        (LATENCY, 0.0),
        (LATENCY, math.nan),
        (LATENCY, 1.0, -0.1),
        (LATENCY, 1.0, math.nan),
        (LATENCY, math.inf),
    ],
)
def test_a_floor_of_nonsense_is_refused(asked):
    with pytest.raises(ValueError, match="floor"):
        floor(*asked)


def test_a_session_is_void_where_identical_code_changed_and_the_reason_names_the_worst():
    worse, better, floors = (
        SLOWER * 2,
        [-2 * ratio for ratio in SLOWER * 2],
        dict.fromkeys("abc", LEAST),
    )
    assert gate.why_void({}, {}) is None
    assert (
        gate.why_void({"a": NOTHING, "b": worse[:4]}, floors) is None
    )  # four pairs are too few
    why = gate.why_void({"a": NOTHING, "b": worse}, floors)
    assert why.startswith(
        "b is the same code on both sides and was found +7.3% over 10 pairs"
    )
    assert gate.why_void({"b": worse, "c": better}, floors).startswith(
        "c (and 1 more) is the same code"
    )


def test_a_control_that_was_equal_at_first_voids_the_session_by_what_comes_later():
    late = NOTHING[:5] + SLOWER * 5
    assert judge(late).verdict == EQUIVALENT and "a is the same code" in gate.why_void(
        {"a": late}, {"a": LEAST}
    )


HISTORIES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.02, 0.05, -0.05]),
        st.sampled_from([0.0, 0.004, 0.02, 0.04]),
        st.integers(0, 2**16),
        st.sampled_from([0.0, 0.2]),
    ),
    min_size=1,
    max_size=5,
)


def history(kinds):
    ratios = {}
    for number, (mean, spread, seed, failing) in enumerate(kinds):
        rng = np.random.default_rng(seed)
        row = rng.normal(mean, spread, gate.LAST_PAIR).tolist()
        ratios[str(number)] = [
            None if rng.random() < failing else ratio for ratio in row
        ]
    return ratios


@settings(max_examples=25, deadline=None)
@given(HISTORIES)
def test_what_is_decided_never_changes_whatever_comes_later(kinds):
    ratios = history(kinds)
    floors = dict.fromkeys(ratios, LEAST)
    whole = gate.decide(ratios, floors)
    lengths = dict.fromkeys(ratios, gate.LAST_PAIR)
    for pairs in range(
        1, gate.LAST_PAIR + 1
    ):  # a session: what is decided is measured no more
        some = gate.decide(
            {name: row[: min(pairs, lengths[name])] for name, row in ratios.items()},
            floors,
        )
        for name, one in some.items():
            if one.decided:
                lengths[name] = min(pairs, lengths[name])
                assert one == whole[name]
    assert all(one.decided for one in some.values())
