"""The table of mutants: what it counts, that it grows by a subject at a time, and that no
subject that is done is lost.
"""

import json
from argparse import Namespace
from dataclasses import replace

import pytest

from batchline.bench import commands
from batchline.bench.commands import _emulation_tables as show
from batchline.bench.commands import emulate
from batchline.bench.commands._emulation_choice import Chosen
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure.emulated import mutant_table
from batchline.bench.measure.emulator import mutants
from batchline.bench.measure.emulator.subjects import Subject

LEAST = 0.95  # of the mutants that change behaviour
MOST = 4
FIRST, SECOND, THIRD, LARGE = SUBJECTS = (
    Subject("op/first", "float16", "ragged", 90),
    Subject("op/second", "float16", "ragged", 90),
    Subject("op/third", "float16", "ragged", 90),
    Subject("op/large", "float16", mutants.DEEP, 90),
)
BARRIER = mutants.Mutant("barrier", 1, "bar.sync 0;", "taken out", "")


def judged(subject, status=mutants.NOTICED, by="wrong result", kind="barrier"):
    return mutants.Judged(subject, replace(BARRIER, kind=kind), status, by)


class Pool:
    """Says of each piece of work what is said here of its subject; stops at another."""

    def __init__(self, stops_at=None, status=mutants.NOTICED, problem=None):
        self.began = []
        self._stops_at = stops_at
        self._status = status
        self._problem = problem

    def as_they_end(self, work, jobs):
        for job in jobs:
            subject = job[0]
            if subject == self._stops_at:
                raise KeyboardInterrupt
            self.began.append(subject)
            if self._problem:
                yield job, None, self._problem
            else:
                yield job, [judged(subject, self._status)], None


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    path = tmp_path / "reports" / "baselines" / "mutants.json"
    monkeypatch.setattr(mutant_table, "PINNED", path)
    return path


def pin(pool, *subjects, what=(), most=MOST):
    options = Namespace(
        pin=True, mutants=most, what=[*what], probe=None, shape=None, arch=None
    )
    return emulate._judge_mutants(pool, options, Chosen(subjects, ()))


def names(*subjects):
    return {str(one) for one in subjects}


def test_a_share_counts_what_changes_behaviour():
    assert mutant_table.Share("barrier", 19, 100, 1).share == 0.95
    assert mutant_table.Share("barrier", 0, 100, 0).share is None


def test_of_every_kind_enough_was_noticed_when_all_were_executed():
    found = mutant_table.read().shares
    assert {one.kind for one in found} >= {"barrier", "mask", "parity", "proxy fence"}
    assert not [one for one in found if one.share is not None and one.share < LEAST]


def test_kernels_with_descriptors_are_in_what_is_pinned_and_none_broke_the_emulator():
    table = mutant_table.read()
    variants = {name.split(" ")[0] for name in table.subjects}
    assert variants >= {
        "bmm/gluon_3xbf16",
        "bmm/triton_persistent_tma",
        "bmm/triton_warp_specialized",
        "wgrad_stats/gluon_fused",
    }
    assert not any(one.broken for one in table.shares)


def test_what_changed_nothing_is_counted_by_kind_and_reason_over_all_parts():
    parts = [
        mutant_table.part_of(
            subject,
            [
                judged(subject),
                judged(subject, mutants.REDUNDANT, mutants.NOT_EXECUTED),
                judged(subject, mutants.REDUNDANT, mutants.SAME_LANES, "mask"),
            ],
        )
        for subject in (FIRST, SECOND)
    ]
    table = mutant_table.Table(MOST, tuple(parts))
    assert table.redundant == {
        "barrier: never executed": 2,
        "mask: the same lanes on these inputs": 2,
    }
    assert [(one.kind, one.noticed, one.redundant) for one in table.shares] == [
        ("barrier", 2, 2),
        ("mask", 0, 2),
    ]


def test_a_mutant_that_broke_the_emulator_proves_nothing():
    every = [judged(FIRST), judged(FIRST, mutants.BROKEN, "IndexError")]
    part = mutant_table.part_of(FIRST, every)
    (share,) = mutant_table.Table(MOST, (part,)).shares
    assert (share.noticed, share.broken, share.share) == (1, 1, 1.0)
    assert "the emulator fails on" in show.broken_mutants(every)[0]
    assert not part.missed


def test_without_a_file_all_is_executed_and_then_nothing(pinned, capsys):
    assert pin(Pool(), *SUBJECTS) == ExitCode.CLEAN
    assert mutant_table.read().subjects == names(*SUBJECTS)
    again = Pool()
    capsys.readouterr()
    assert pin(again, *SUBJECTS) == ExitCode.CLEAN
    said = capsys.readouterr().out
    assert again.began == []
    assert "0 mutants" in said and "has 4 of these 4 subjects" in said
    assert "barrier" in said and "100.0%" in said


def test_only_what_the_file_lacks_is_executed_and_what_was_there_stays(pinned):
    pin(Pool(), FIRST)
    before = mutant_table.read().parts
    pool = Pool()
    pin(pool, FIRST, SECOND)
    assert pool.began == [SECOND]
    assert mutant_table.read().parts[:1] == before


def test_an_interruption_loses_only_what_had_begun(pinned):
    with pytest.raises(KeyboardInterrupt):
        pin(Pool(stops_at=THIRD), *SUBJECTS)
    assert mutant_table.read().subjects == names(FIRST, SECOND)


def test_a_subject_of_several_pieces_is_kept_when_all_are_over(pinned):
    class Half(Pool):
        def as_they_end(self, work, jobs):
            some = list(jobs)
            yield from super().as_they_end(work, some[: len(some) // 2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pin(Half(), LARGE)
    assert not pinned.exists()


def test_what_came_to_no_end_is_said_and_not_kept(pinned, capsys):
    assert pin(Pool(problem="op/first: its process died"), FIRST) == ExitCode.FAULT
    assert "its process died" in capsys.readouterr().out
    assert not pinned.exists()


def test_a_kernel_without_a_mutant_is_kept_too(pinned):
    mutant_table.add(FIRST, [], MOST)
    assert mutant_table.read().subjects == names(FIRST)


def test_a_missed_one_is_printed_each_time_and_the_exit_is_not_clean(pinned, capsys):
    pin(Pool(status=mutants.MISSED), FIRST)
    capsys.readouterr()
    assert pin(Pool(), FIRST, SECOND) == ExitCode.FAULT
    said = capsys.readouterr().out
    assert f"missed: {FIRST}: barrier taken out" in said.replace("\n", " ")


def test_a_kernel_that_is_named_is_executed_anew(pinned):
    pin(Pool(status=mutants.MISSED), FIRST, SECOND)
    on_another_probe = replace(FIRST, probe="one_token")
    pin(Pool(), on_another_probe, what=["op/first"])
    table = mutant_table.read()
    assert table.subjects == names(on_another_probe, SECOND)
    assert [str(SECOND) in line for line in table.missed] == [True]


def test_a_kernel_that_was_counted_together_with_others_is_a_line(pinned):
    both = replace(
        mutant_table.part_of(FIRST, [judged(FIRST)]),
        subjects=(str(FIRST), str(SECOND)),
    )
    mutant_table._save(mutant_table.Table(MOST, (both,)))
    pool = Pool()
    with pytest.raises(UsageError, match="op/first .* together with others"):
        pin(pool, FIRST, what=["op/first"])
    assert pool.began == []


def test_what_the_table_has_besides_is_named(pinned, capsys):
    pin(Pool(), FIRST, SECOND)
    capsys.readouterr()
    pin(Pool(), SECOND)
    said = capsys.readouterr().out
    assert f"counted, and none of them now: {FIRST}" in said


@pytest.mark.parametrize(
    "kept, asked, give",
    [(4, 8, "has at most 4 .* --mutants 4,"), (None, 8, "has all .* --mutants,")],
)
def test_another_number_of_mutants_is_a_line(pinned, kept, asked, give):
    mutant_table.add(FIRST, [judged(FIRST)], kept)
    with pytest.raises(UsageError, match=give):
        pin(Pool(), FIRST, SECOND, most=asked)


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps({"subjects": [], "kinds": {}})], ids=len
)
def test_a_damaged_file_is_a_line(pinned, text):
    pinned.parent.mkdir(parents=True)
    pinned.write_text(text)
    with pytest.raises(UsageError, match="mutants.json"):
        pin(Pool(), FIRST)
    assert pinned.read_text() == text


@pytest.mark.parametrize(
    "words",
    [
        ["--pin"],
        ["--pin", "--mutants", "--arch", "90"],
        ["--pin", "--mutants", "--", "bmm/triton_tiled/tiny_4/float16/B2"],
    ],
    ids=" ".join,
)
def test_only_what_whole_kernels_did_is_pinned(words):
    _, module, options = commands.parse(["emulate", *words])
    with pytest.raises(UsageError, match="--pin keeps what --mutants says of whole"):
        module.run(options)
