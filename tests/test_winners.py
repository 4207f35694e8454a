"""The map of the winners: who wins a cell, what leaves it undecided, where the winner
changes, and what is said where there is none.
"""

from dataclasses import replace

import pytest

from batchline.bench.report.findings import Findings
from batchline.bench.statuses import (
    FAILED,
    INVALID,
    NOT_HERE,
    THE_MACHINE_WAS,
    UNSUPPORTED,
)
from batchline.bench.store.records import OpFacts, Record, Run
from batchline.bench.verdicts import winners
from batchline.bench.verdicts.winners import describe
from tests.fake_calls import record

BACKENDS = {
    "torch_bmm": "torch",
    "torch_folded": "torch",
    "triton_tiled": "triton",
    "numba_cpu_blocked": "numba_cpu",
    "cutlass": "cutlass",
}


def timed(variant, batch, seconds, **facts):
    """A case whose samples are within 0.1% of `seconds`."""
    return record(variant, batch, seconds, backend=BACKENDS[variant], **facts)


def untimed(variant, batch, status, reason=""):
    return Record("bmm", variant, "tiny_16", "float32", batch, status, reason)


def map_of(*records):
    run = Run(records=records, ops={"bmm": OpFacts(baseline="torch_bmm")})
    return Findings(run).winners


def cells_of(*records):
    (row,) = map_of(*records).rows
    return row.cells


def test_the_fastest_family_wins_by_its_speed_up_over_pytorchs_fastest():
    (cell,) = cells_of(
        timed("torch_bmm", 4, 4e-6),
        timed("torch_folded", 4, 3e-6),
        timed("triton_tiled", 4, 1e-6),
    )
    winner = cell.winner
    assert (winner.variant, winner.family.name) == ("triton_tiled", "Triton")
    assert (winner.opponent, winner.speed_up) == ("torch_folded", pytest.approx(3))
    assert winner.is_decided and winner.is_ahead and winner.depth == 3
    assert describe(cell) == "triton_tiled, 3.00x over torch_folded"


def test_a_tie_with_another_family_is_undecided_and_one_within_a_family_is_not():
    (between,) = cells_of(
        timed("torch_bmm", 4, 1e-6), timed("numba_cpu_blocked", 4, 1.01e-6)
    )
    assert between.winner.alike == ("numba_cpu_blocked",)
    assert not between.winner.is_decided
    assert "undecided, as fast may be numba_cpu_blocked" in describe(between)
    (within,) = cells_of(
        timed("torch_bmm", 4, 1e-6),
        timed("torch_folded", 4, 1.01e-6),
        timed("numba_cpu_blocked", 4, 2e-6),
    )
    assert within.winner.is_decided
    assert (within.winner.variant, within.winner.family.letter) == ("torch_bmm", "P")


def test_the_winner_changes_where_the_choice_does_and_says_where_the_two_meet():
    first, second, third = cells_of(
        *(timed("torch_bmm", batch, 1e-6 * batch) for batch in (1, 10, 100)),
        *(timed("triton_tiled", batch, 4e-6) for batch in (1, 10, 100)),
    )
    assert first.winner.instead_of is third.winner.instead_of is None
    assert second.winner.instead_of == "torch_bmm"
    assert 1 < second.winner.meet.batch < 10
    assert "takes over from torch_bmm at B* = 4" in describe(second)


def test_a_tie_changes_no_winner():
    _, tie = cells_of(
        timed("torch_bmm", 1, 2e-6),
        timed("triton_tiled", 1, 1e-6),
        timed("torch_bmm", 2, 1.99e-6),
        timed("triton_tiled", 2, 2e-6),
    )
    assert (tie.winner.variant, tie.winner.instead_of) == ("triton_tiled", None)
    assert not tie.winner.is_decided and not tie.winner.is_ahead


def test_pytorchs_fastest_wins_where_it_is_not_chosen_for_its_bound_alone():
    (cell,) = cells_of(
        timed("torch_bmm", 4, 4e-6),
        timed("torch_folded", 4, 1e-6, own_tolerance=True, tolerance_multiple=2),
        timed("numba_cpu_blocked", 4, 2e-6),
    )
    assert (cell.winner.variant, cell.winner.speed_up) == ("torch_folded", 1.0)
    assert cell.winner.is_decided and not cell.winner.is_ahead


def test_without_pytorch_there_is_a_winner_and_no_speed_up():
    (cell,) = cells_of(
        untimed("torch_bmm", 4, FAILED, "ValueError: no"), timed("cutlass", 4, 1e-6)
    )
    assert (cell.winner.speed_up, cell.winner.depth) == (None, 0)
    assert (cell.winner.family.name, cell.winner.family.letter) == ("cutlass", "O")
    assert cell.broken == ("torch_bmm (failed)",)
    assert describe(cell) == (
        "cutlass; none of PyTorch's variants is ranked here; broken: torch_bmm (failed)"
    )


@pytest.mark.parametrize(
    "record, says",
    [
        (untimed("torch_bmm", 8, FAILED, "ValueError: no"), "failed: ValueError: no"),
        (untimed("torch_bmm", 8, UNSUPPORTED, "odd K"), "unsupported: odd K"),
        (untimed("torch_bmm", 8, NOT_HERE, "needs CUDA"), "not timed here: needs CUDA"),
        (
            untimed("torch_bmm", 8, INVALID, f"{THE_MACHINE_WAS}busy"),
            f"invalid: {THE_MACHINE_WAS}busy",
        ),
        (
            timed("torch_bmm", 8, 1e-6, gives=1),
            "nothing that may win was timed: torch_bmm, gives only some of the op's outputs",
        ),
    ],
    ids=["failed", "unsupported", "not here", "busy", "unranked"],
)
def test_a_cell_without_a_winner_says_why(record, says):
    _, cell = cells_of(timed("torch_bmm", 4, 1e-6), record)
    assert not cell.winner and describe(cell).startswith(says)
    assert bool(cell.broken) == (record.status == FAILED)


def test_a_problem_of_which_nothing_was_timed_is_no_row_and_is_counted():
    absent = replace(untimed("torch_bmm", 4, NOT_HERE), scenario="tiny_4")
    broken = replace(untimed("torch_bmm", 4, FAILED), scenario="tiny_8")
    of = map_of(timed("torch_bmm", 4, 1e-6), absent, broken)
    assert [row.scenario for row in of.rows] == ["tiny_16", "tiny_8"]
    assert [row.is_timed for row in of.rows] == [True, False]
    assert of.without == 1 and of.batches == [4]


def test_depths_part_the_speed_ups():
    depths = [
        cells_of(timed("torch_bmm", 1, gain * 1e-6), timed("triton_tiled", 1, 1e-6))[
            0
        ].winner.depth
        for gain in (1.05, 1.2, 1.6, 3.0, 9.0)
    ]
    assert depths == list(range(winners.DEEPEST + 1))
