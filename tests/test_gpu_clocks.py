"""The report says at which clocks a GPU ran, whether a power cap was on, and what a
load that lasts took.
"""

from dataclasses import replace

import pytest

from batchline.bench.report.of_commands import screen
from batchline.bench.report.sections import machine, ops
from tests.documents import in_markdown, readme
from tests.pages import a_run

CASE = "bmm/torch_bmm/tiny_16/float32/B4"
SUSTAINED = {"seconds": 1.02, "median_s": 1.5e-3, "sm_mhz": 1440, "power_w": 698.7}


def on_a_gpu(seen=(1440, 1980), capped=True, **facts):
    """A run whose one measured case is a GPU's."""
    state = {
        "before": {},
        "after": {"sm_mhz_seen": list(seen), "power_cap_seen": capped, "throttled": []},
    }
    run = a_run()
    return replace(
        run,
        records=tuple(
            (
                replace(record, facts=record.facts | {"state": state} | facts)
                if record.facts
                else record
            )
            for record in run.records
        ),
    )


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    "seen, capped, words",
    [
        ((1440, 1980), True, "SM at 1440 to 1980 MHz, under a power cap"),
        ((1980, 1980), False, "SM at 1980 MHz, at"),
    ],
)
def test_explain_shows_the_clocks_that_were_seen(seen, capped, words):
    assert words in flat(screen(on_a_gpu(seen, capped), CASE, "x"))


def test_a_run_says_its_clocks_and_its_power_cap_once():
    text = readme(on_a_gpu(), missing="no plots")
    assert (
        text.count(
            "The SM clock was at 1440 to 1980 MHz. A power cap was on during 1 of 1 cases"
        )
        == 1
    )
    text = readme(on_a_gpu(capped=False), missing="no plots")
    assert "The SM clock was at 1440 to 1980 MHz. " in text and "power cap" not in text


def test_what_is_not_known_is_not_said():
    for facts in (
        {},
        {"state": {"others_share": 0.1}},
        {"state": {"before": {}, "after": {"unknown": "no NVML"}}},
    ):
        assert (
            machine.clocks_of_problem(facts) is None
            and machine.clocks_of_run([facts]) == ""
        )
    assert machine.sustained({}) is None
    assert "sustained" not in in_markdown(*ops.clocks(a_run().records, None))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "1.50 ms at 1440 MHz and 699 W"),
        ({"power_w": None}, "1.50 ms at 1440 MHz"),
        ({"power_w": None, "sm_mhz": None}, "1.50 ms"),
    ],
)
def test_a_load_that_lasts_has_its_column_and_its_line(changes, words):
    run = on_a_gpu(sustained=SUSTAINED | changes)
    assert f"{words}, over 1.02 s of calls in a row; not ranked" in flat(
        screen(run, CASE, "x")
    )
    table = in_markdown(*ops.clocks(run.records, None))
    assert table.splitlines()[0].rstrip(" |").endswith("sustained")
    assert table.splitlines()[2].rstrip(" |").endswith(words)


def test_a_clock_that_was_not_sampled_in_turns_says_so():
    run = on_a_gpu()
    record = next(record for record in run.records if record.facts)
    clocks = record.facts["clocks"] | {
        "host_cold": record.facts["clocks"]["host_cold"] | {"alone": "sampled alone"}
    }
    run = on_a_gpu(clocks=clocks)
    assert "by host_cold host_cold: sampled alone" in flat(screen(run, CASE, "x"))
    table = in_markdown(*ops.clocks(run.records, None))
    assert "(1) |" in table and "(1) sampled alone" in table
