"""A comparison in Markdown and in the terminal: every verdict, a void session, and text
that stays text.
"""

import html
import re
from dataclasses import replace

import pytest

from batchline.bench import units
from batchline.bench.report import regression
from batchline.bench.store.regressions import (
    ACCURACY,
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    MEMORY,
    MISSING,
    NEW,
    REGRESSED,
    UNCONFIRMED,
    VERDICTS,
)
from batchline.bench.verdicts.paired import (
    INCOMPLETE,
    LEFT_OPEN,
    NOTHING,
    SLOWER,
    conclude,
)
from tests.comparisons import (
    HOSTILE,
    comparison,
    hostile_comparison,
    judged,
    over_batches,
)

CASE = "bmm/tiled/tiny_16/float16/B1"
FROM = "base main@aaaaaaaaa, head bbbbbbbbb with uncommitted changes, Some GPU, 10 pairs in 83 s"
FOUND = {
    REGRESSED: (
        f"1 of 1 case REGRESSED: {CASE} +10.0% (+9.0% to +11.0%)",
        "20.0 µs → 22.0 µs; +10.0% (+9.0% to +11.0%); floor 1.5% (A/A); 10 pairs",
    ),
    IMPROVED: (
        "No regression confirmed in 1 case; 1 improved",
        "20.0 µs → 18.0 µs; -10.0% (-11.0% to -9.0%); floor 1.5% (A/A); 10 pairs",
    ),
    EQUIVALENT: (
        "No regression confirmed in 1 case; 1 equal",
        "20.0 µs → 20.0 µs; +0.0% (-0.1% to +0.2%); floor 1.5% (A/A); 10 pairs",
    ),
    INCONCLUSIVE: (
        f"UNDECIDED: none of 1 case could be judged ({CASE} +4.0% (-1.0% to +9.0%), floor 1.5% (A/A))",
        "20.0 µs → 21.0 µs; +4.0% (-1.0% to +9.0%); floor 1.5% (A/A); 10 pairs; "
        "could have seen +8.0%; 24 pairs in all would tell",
    ),
    UNCONFIRMED: (
        f"UNDECIDED: 1 of 1 case may have regressed, beyond the floor and not confirmed: {CASE} +105% "
        "(+98.1% to +113%)",
        "20.0 µs → 41.0 µs; +105% (+98.1% to +113%); floor 1.5% (A/A); 10 pairs; "
        "6 pairs in all would tell",
    ),
    INVALID: (
        f"COULD NOT MEASURE: none of 1 case could be judged ({CASE}: throttled on both sides)",
        "throttled on both sides",
    ),
    IDENTICAL: ("No regression confirmed in 1 case; 1 the same code", "the same code"),
    NEW: (
        "No regression confirmed in 1 case; 1 new",
        "nothing → 20.0 µs; only at head",
    ),
    MISSING: (
        "COULD NOT MEASURE: there was no case to compare; 1 missing",
        "20.0 µs → nothing; only at base",
    ),
}

CLASS = {
    REGRESSED: "regression",
    IMPROVED: "improvement",
    EQUIVALENT: "noise",
    INCONCLUSIVE: "undecided",
    UNCONFIRMED: "undecided",
    INVALID: "undecided",
    IDENTICAL: "",
    NEW: "",
    MISSING: "",
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_in_words_in_markdown_and_in_the_terminal(verdict):
    case = judged(verdict)
    found, (answer, line) = comparison(case), FOUND[verdict]
    assert regression.summarize(found) == f"{answer}; {FROM}"
    assert regression.line(case) == line
    shown = html.unescape(regression.markdown(found))
    assert shown.startswith(f"**{answer}; {FROM}**")
    (row,) = (line for line in shown.splitlines() if line.startswith(f"| {CASE}"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == [CASE, "latency", verdict, CLASS[verdict]]
    assert all(cell in line or cell == str(case.pairs) for cell in cells[4:])
    assert ("<details>" in shown) == (verdict in (EQUIVALENT, IDENTICAL))
    flat = " ".join(regression.terminal(found).split())
    assert answer in flat
    assert f"{verdict} bmm/tiled/tiny_16/float16" in flat and (
        line in flat or "<details>" in shown
    )


@pytest.mark.parametrize(
    "quantity, values, shown",
    [
        (MEMORY, (2**20, 2**21), "1.00 MiB → 2.00 MiB"),
        (ACCURACY, (0.1, 0.25), "10.0% of the tolerance → 25.0%"),
    ],
)
def test_other_quantities_have_their_units_and_are_named(quantity, values, shown):
    found = comparison(
        judged(
            REGRESSED,
            quantity=quantity,
            base=values[0],
            head=values[1],
            low=0.1,
            high=0.1,
        )
    )
    assert shown in regression.markdown(
        found
    ) and f"{CASE} {quantity} +10.0% (in every pair)" in regression.summarize(found)


@pytest.mark.parametrize(
    "value, shown",
    [(-0.0001, "+0.0%"), (0.0341, "+3.4%"), (-0.5, "-50.0%"), (1.5, "+150%")],
)
def test_a_change_has_its_sign_and_no_change_is_no_fall(value, shown):
    assert units.change(value) == shown


def test_the_worst_comes_first_and_a_case_counts_once():
    found = comparison(
        judged(IDENTICAL, 1),
        judged(EQUIVALENT, 2),
        judged(INCONCLUSIVE, 4),
        judged(REGRESSED, 8),
        judged(REGRESSED, 16, effect=0.3),
        judged(IMPROVED, 16, quantity=MEMORY),
        kernels=[over_batches(EQUIVALENT, "equal"), over_batches()],
    )
    assert regression.summarize(found).startswith(
        "2 of 5 cases REGRESSED: bmm/tiled/tiny_16/float16/B16 +30.0% "
    )
    assert "; 1 inconclusive, 1 equal, 1 the same code; " in regression.summarize(found)
    for text in (html.unescape(regression.markdown(found)), regression.terminal(found)):
        places = [
            text.index(verdict, text.index("Case by case"))
            for verdict in (REGRESSED, INCONCLUSIVE, IMPROVED)
        ]
        assert places == sorted(places) and places[-1] < text.index(
            "Unchanged: 2 verdicts on 2 cases"
        )
        assert "slower for B ≤ 16" in text
    assert [title for title, _ in regression.problems(found)] == [
        f"REGRESSED {CASE[:-1]}16",
        f"REGRESSED {CASE[:-1]}8",
    ]


def test_a_kernel_that_regressed_only_over_its_batch_sizes_is_in_the_answer_and_a_problem():
    found = comparison(judged(INCONCLUSIVE), kernels=[over_batches()])
    assert regression.summarize(found).startswith(
        "1 kernel REGRESSED over the batch sizes together: bmm/tiled/tiny_16/float16: "
        "slower for B ≤ 16 (+7.2%), equal above; 1 inconclusive; "
    )
    assert regression.problems(found) == [
        (
            "REGRESSED bmm/tiled/tiny_16/float16",
            "slower for B ≤ 16 (+7.2%), equal above",
        )
    ]


def test_a_void_session_says_so_first_and_is_one_problem():
    found = comparison(
        judged(REGRESSED), judged(IDENTICAL, 2), void="identical code was found +5.0%"
    )
    for text in (regression.markdown(found), regression.terminal(found)):
        assert text.lstrip("*").startswith(
            "VOID, no verdict counts: identical code was found +5.0%"
        )
        assert "the session is void, and none of it counts" in text
    assert regression.problems(found) == [
        ("The comparison is void", "identical code was found +5.0%")
    ]


@pytest.mark.parametrize(
    "cases, answer",
    [
        ((), "COULD NOT MEASURE: there was no case to compare"),
        (
            (judged(INVALID, reason=""), judged(MISSING, 2)),
            "COULD NOT MEASURE: none of 1 case could be judged; 1 missing",
        ),
        (
            (judged(INVALID), judged(IDENTICAL, 2)),
            "COULD NOT MEASURE: none of 1 case could be judged",
        ),
        (
            (
                judged(INCONCLUSIVE),
                judged(IDENTICAL, 2),
                judged(EQUIVALENT, quantity=MEMORY),
            ),
            "UNDECIDED: none of 1 case could be judged",
        ),
    ],
)
def test_where_nothing_was_judged_nothing_is_clean(cases, answer):
    found = comparison(*cases)
    assert conclude(found) == NOTHING
    for text in (
        regression.summarize(found),
        regression.markdown(found).lstrip("*"),
        regression.terminal(found),
    ):
        assert text.startswith(answer)
    assert regression.problems(found)[:1] == [
        ("Nothing could be judged", regression.summarize(found))
    ]


@pytest.mark.parametrize(
    "cases, lead, conclusion",
    [
        (
            (judged(UNCONFIRMED), judged(EQUIVALENT, 2), judged(INVALID, 3)),
            "UNDECIDED: 1 of 3 cases may have regressed",
            LEFT_OPEN,
        ),
        (
            (judged(EQUIVALENT), judged(UNCONFIRMED, quantity=MEMORY)),
            "UNDECIDED: 1 of 1 case may have regressed",
            LEFT_OPEN,
        ),
        (
            (judged(EQUIVALENT), judged(INVALID, 2)),
            "INCOMPLETE: 1 of 2 cases could not be judged, no",
            INCOMPLETE,
        ),
        (
            (judged(UNCONFIRMED), judged(REGRESSED, 2)),
            "1 of 2 cases REGRESSED: ",
            SLOWER,
        ),
    ],
)
def test_a_session_that_is_no_pass_does_not_lead_with_no_regression(
    cases, lead, conclusion
):
    found = comparison(*cases)
    assert conclude(found) == conclusion
    for text in (
        regression.summarize(found),
        regression.markdown(found).lstrip("*"),
        regression.terminal(found),
    ):
        assert text.startswith(lead)
    assert regression.problems(found) and set(
        title.split()[0] for title, _ in regression.problems(found)
    ) == {case.verdict for case in cases if case.verdict != EQUIVALENT}


def test_what_is_clean_has_no_problem():
    found = comparison(
        *map(
            judged,
            (IMPROVED, EQUIVALENT, INCONCLUSIVE, IDENTICAL, NEW, MISSING),
            range(6),
        )
    )
    assert (
        regression.problems(found) == [] == regression.problems(comparison(judged(NEW)))
    )


def test_text_of_others_is_text_in_markdown():
    shown = regression.markdown(hostile_comparison())
    assert set(re.findall(r"<[^>]*>", shown)) == {
        "<details>",
        "<summary>",
        "</summary>",
        "</details>",
    }
    assert not re.search(
        r"[`~@#$]", re.sub(r"^### |^```(text)?$|&#\d+;", "", shown, flags=re.MULTILINE)
    )
    assert "](" not in shown and not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202e]", shown
    )
    tables = [line for line in shown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5, 10} and not any(
        "\\|" in line for line in tables
    )
    visible = html.unescape(shown)
    assert (
        "<script>alert(\"1\")</script> 'q' & | `c` **b** [l](http://x) @all #1 $x$ ~~s~~ \\"
        in visible
    )


def test_the_terminal_fits_100_columns_and_gives_no_command_to_a_runner():
    shifted = [
        judged(INVALID, number, reason="x" * number + " ::error::pwned" * 9)
        for number in range(1, 100)
    ]
    unbroken = judged(INVALID, reason="a" * 95 + "::error::pwned" * 20)
    for found in (
        hostile_comparison(),
        comparison(*shifted),
        comparison(unbroken),
        comparison(*(judged(EQUIVALENT, number) for number in range(200))),
    ):
        lines = regression.terminal(found).splitlines()
        assert max(map(len, lines)) <= 100
        assert not [
            line for line in lines if line.lstrip().startswith("::") or "##[" in line
        ]
        assert not re.search(
            "[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202e]", "".join(lines)
        )
    assert HOSTILE.split()[-1] in regression.terminal(hostile_comparison())


def state(base, head, **throttled):
    return {
        "pair": 1,
        "problem": "bmm/tiny_16/float32/B1",
        "base": base,
        "head": head,
        "throttled": throttled,
    }


@pytest.mark.parametrize(
    "states, said",
    [
        ((), ""),
        ((state({}, {}),), ""),
        ((state({"unknown": "no NVML"}, {"mhz": None}),), ""),
        (
            (state({"mhz": 2000.0}, {"mhz": 2100.0}),),
            "CPU clock 2050 MHz (2000 to 2100) while it was measured.",
        ),
        (
            (
                state(
                    {"before": {"sm_mhz": 1980}, "after": {"sm_mhz": 1755}},
                    {"before": {}, "after": {"sm_mhz": 1980}},
                    heat=1,
                ),
                state({}, {}, heat=2),
            ),
            "SM clock 1980 MHz (1755 to 1980) while it was measured; 3 turns dropped, throttled: heat.",
        ),
    ],
)
def test_the_clocks_and_what_was_dropped_are_said(states, said):
    assert regression.clocks(states) == said
    shown = regression.markdown(replace(comparison(judged(EQUIVALENT)), states=states))
    assert ("The clocks" in shown) == bool(said) and said in shown


def test_ten_rows_of_what_changed_stand_above_the_fold_the_worst_first():
    found = comparison(
        *(judged(INCONCLUSIVE, batch) for batch in range(1, 13)),
        judged(REGRESSED, 99),
        kernels=[over_batches(variant="other")],
    )
    shown = regression.markdown(found)
    above, fold, below = shown.partition("<details>")
    rows = [line for line in above.splitlines() if line.startswith("| bmm/")]
    assert len(rows) == 10 and "slower for B ≤ 16" in rows[0] and "/B99 " in rows[1]
    assert below.startswith("<summary>And 4 more</summary>")
    assert sum(line.startswith("| bmm/tiled") for line in below.splitlines()) == 4


def test_a_machine_that_was_not_itself_is_no_regression():
    void = comparison(judged(REGRESSED), void="identical code was found +5.0%")
    busy = judged(INVALID, reason="invalid: the machine was busy: others took 40%")
    for found in (void, comparison(busy)):
        (row,) = (line for line in markdown_rows(found) if line.startswith(f"| {CASE}"))
        assert row.split("|")[4].strip() == "hardware"
        assert "put down to hardware" in regression.terminal(found)


def markdown_rows(found):
    return regression.markdown(found).splitlines()
