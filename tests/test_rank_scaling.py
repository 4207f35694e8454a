"""The mean gradient over ranks: each way against fp64 on one gloo rank, what is wrong on
purpose, and the law of its time had back where it is known. Two ranks are started in
tests/test_rank_scaling_command.py.
"""

import json
import os

import pytest
import torch
from torch import distributed

from batchline.bench import own_study
from batchline.bench.errors import UsageError
from batchline.bench.measure.machine import memory, state
from batchline.bench.noise.experiments import local_ranks
from batchline.bench.noise.experiments import mean_over_ranks as subject
from batchline.bench.noise.rank_scaling import ScalingLaw
from batchline.bench.noise.ranks import AllReduce
from batchline.bench.report.sections.scaling import scaling
from batchline.bench.store import rank_times
from batchline.kernels import cgroups
from tests.documents import on_terminal
from tests.rank_evidence import (
    CALL_S,
    GRADIENT_S,
    MESSAGE_S,
    SAMPLE_S,
    measured,
    scaling_of,
    time_s,
    wrong_on,
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of this process alone."""
    start = tmp_path_factory.mktemp("ranks") / "start"
    distributed.init_process_group(
        "gloo", init_method=f"file://{start}", rank=0, world_size=1
    )
    yield distributed.group.WORLD
    distributed.destroy_process_group()


@pytest.mark.parametrize("way, wire", subject.PAIRS)
def test_each_way_is_right_on_every_probe(alone, way, wire):
    dtype = getattr(torch, wire)
    assert subject.why_wrong(subject.WAYS[way], dtype, alone, "cpu") is None


def without_the_last_bucket(g, wire, group):
    mean = subject.own_bucketed(g, wire, group)
    whole = len(mean) // subject._BUCKET * subject._BUCKET
    return torch.cat([mean[:whole], torch.zeros(len(mean) - whole)])


def as_if_it_lay_in_rows(g, wire, group):
    laid = torch.as_strided(g, g.shape, (g.shape[1], 1))
    return subject.torch_one_message(laid, wire, group)


def sum_and_no_mean(g, wire, group):
    return subject.torch_one_message(g, wire, group) * len(g)


def in_half_the_digits(g, wire, group):
    return subject.torch_one_message(g, torch.bfloat16, group)


@pytest.mark.parametrize(
    "wrong, on",
    [
        (without_the_last_bucket, "ragged last bucket"),
        (as_if_it_lay_in_rows, "strided"),
        (sum_and_no_mean, "ragged last bucket"),
        (in_half_the_digits, "ragged last bucket"),
        (lambda g, wire, group: g.double().mean(0), "ragged last bucket"),
        (lambda g, wire, group: g.mean(0) * torch.nan, "ragged last bucket"),
    ],
)
def test_what_is_wrong_is_said_and_where(alone, wrong, on):
    why = subject.why_wrong(wrong, torch.float32, alone, "cpu")
    assert why.startswith(f"on {on}: ")


def test_what_is_wrong_has_no_time(alone, monkeypatch):
    g = torch.randn(2, 300)
    wrong = {
        pair: "on x: no" if pair[1] == "bfloat16" else None for pair in subject.PAIRS
    }
    monkeypatch.setattr(subject.local_ranks, "_FEWEST", 1)
    monkeypatch.setattr(subject.local_ranks, "_MOST", 1)
    rows = subject._rows(g, alone, wrong)
    assert len(rows) == len(subject.PAIRS)
    for row in rows:
        assert ("why_not" in row) == (row["wire"] == "bfloat16") != ("samples_s" in row)
        assert row["ranks"] == 1 and row["batch"] == 2
        assert row.get("error", 0) < 1e-6


def test_the_tolerance_is_of_rounding_and_no_more(alone):
    g = torch.ones(3, 5)
    of_fp32 = subject.tolerance(g, torch.float32, alone)
    of_bf16 = subject.tolerance(g, torch.bfloat16, alone)
    assert of_fp32.shape == (5,)
    assert of_fp32.max() < 2e-6 and 0.003 < of_bf16.min() and of_bf16.max() < 0.005


def test_no_rank_holds_what_the_others_have(alone, monkeypatch):
    def gathers(*_, **__):
        raise AssertionError("R ranks with R times the samples are R² of them")

    monkeypatch.setattr(distributed, "all_gather", gathers)
    g = torch.randn(5, 30)
    assert torch.equal(subject.mean_of_all(g, alone), g.double().sum(0) / 5)
    way = subject.WAYS["torch_one_message"]
    assert subject.why_wrong(way, torch.float32, alone, "cpu") is None


def test_ranks_that_memory_can_not_have_are_refused_before_they_start(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**30)
    monkeypatch.setattr(local_ranks, "run", lambda *_, **__: pytest.fail("started"))
    said = "1,024 ranks would take .* are free: give fewer --ranks"
    with pytest.raises(UsageError, match=said):
        subject.measure(512, (8,), 1024, "cpu")
    local_ranks.require_memory(2, 2**20)
    monkeypatch.setattr(memory, "free_bytes", lambda: None)  # no Linux
    local_ranks.require_memory(1024, 2**30)


@pytest.mark.parametrize(
    "allowed, quota, expected", [({0, 5}, None, 2), ({0, 5}, 1, 1), (None, None, 64)]
)
def test_the_cores_are_those_that_the_ranks_may_use(
    monkeypatch, allowed, quota, expected
):
    monkeypatch.setattr(state, "cores", lambda: allowed)
    monkeypatch.setattr(cgroups, "whole_cores", lambda: quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert local_ranks.cores() == expected


PAIR = "own_bucketed", "float32"


def test_the_law_is_had_back_and_says_how_far_it_is_off():
    law = scaling_of(measured()).laws[PAIR]
    parts = law.call_s, law.sample_s, law.message_s, law.gradient_s
    assert parts == pytest.approx((CALL_S, SAMPLE_S, MESSAGE_S, GRADIENT_S), rel=1e-6)
    assert law.seconds(100, 8) == pytest.approx(time_s(8, 100), rel=1e-6)
    assert abs(law.worst) < 1e-9
    bent = {(1, 8): 1.0, (1, 16): 1.0, (1, 32): 3.0, (2, 8): 1.0}
    assert ScalingLaw.of(bent).worst > 0.2


def test_no_part_of_a_law_is_below_zero():
    law = ScalingLaw.of({(1, 8): 3.0, (1, 16): 2.0, (2, 8): 1.0, (2, 16): 0.5})
    assert min(law.call_s, law.sample_s, law.message_s, law.gradient_s) >= 0


def test_what_can_not_be_told_apart_is_one_part_of_a_law():
    two_counts = {(r, b): time_s(r, b) for r in (1, 2) for b in (8, 16)}
    law = ScalingLaw.of(two_counts)
    assert law.gradient_s == 0
    assert law.message_s == pytest.approx(MESSAGE_S + GRADIENT_S / 2)
    without_one = {(r, b): time_s(r, b) for r in (2, 4) for b in (8, 16)}
    assert ScalingLaw.of(without_one).gradient_s == 0
    one_batch = ScalingLaw.of({(r, 8): time_s(r, 8) for r in (1, 2, 4)})
    assert one_batch.sample_s == 0
    assert one_batch.call_s == pytest.approx(CALL_S + 8 * SAMPLE_S)
    one_rank = ScalingLaw.of({(1, 8): 2e-4, (1, 16): 3e-4})
    assert one_rank.message_s == one_rank.gradient_s == 0


def test_ranks_that_share_cores_are_no_part_of_a_law():
    document = measured(cores=2)
    for row in document["rows"]:
        if row["ranks"] == 4:
            row["samples_s"] = [1.0]
    result = scaling_of(document)
    assert result.with_a_core_each == (1, 2)
    assert abs(result.laws[PAIR].worst) < 1e-9
    assert scaling_of(document | {"backend": "nccl"}).with_a_core_each == (1, 2, 4)


def test_weak_and_strong_scaling_are_efficiencies():
    result = scaling_of(measured())
    assert result.weak(PAIR, 4, 8) == pytest.approx(time_s(1, 8) / time_s(4, 8))
    assert result.strong(PAIR, 4, 32) == pytest.approx(time_s(1, 32) / time_s(4, 8) / 4)
    assert result.strong(PAIR, 4, 16) is None  # nobody has measured 4 samples
    assert result.weak(PAIR, 8, 8) is None


def told(document):
    return on_terminal(*scaling(scaling_of(document)))


def test_the_report_has_all_of_it():
    text = " ".join(told(measured()).split())
    assert "share" not in text and "law holds for" not in text
    assert "2(r − 1)·(100 µs + 400 µs/r)" in text
    assert "Weak scaling" in text and "Strong scaling" in text
    assert "own_bucketed float32 1e-07 2e-07 4e-07" in text


def test_ranks_that_share_cores_are_in_the_table_as_such():
    text = told(measured(cores=2))
    whole = " ".join(text.split())
    assert "4 ranks share 2 cores: that is no measurement of scaling." in whole
    assert "It is of 1 and 2 ranks." in whole and "holds for no others" in whole
    assert text.count("4 on 2 cores") == 2  # of each way, the times alone
    assert "4 ranks on 2 cores" in text.partition("The error")[2]
    on_one_core = " ".join(told(measured(cores=1)).split())
    assert "2 and 4 ranks share 1 core:" in on_one_core
    assert "scaling, as efficiency" not in on_one_core


def test_a_law_of_one_batch_says_so():
    document = measured(batches=[8])
    document["rows"] = [row for row in document["rows"] if row["batch"] == 8]
    assert "Of one batch the law can't say what a sample takes" in told(document)


def test_a_law_that_is_off_is_marked():
    document = measured()
    document["rows"][0]["samples_s"] = [1.0]
    (row,) = [
        line
        for line in told(document).partition("t(B, r)")[2].splitlines()
        if line.startswith("torch_one_message") and "%" in line and "(r − 1)" in line
    ]
    assert row.rstrip().endswith("%*")


def test_a_count_of_ranks_that_nobody_dealt_samples_to_is_no_row():
    document = measured(batches=[8, 32])
    document["rows"] = [row for row in document["rows"] if row["batch"] != 16]
    strong = told(document).partition("Strong")[2]
    rows = [line.split() for line in strong.partition("The error")[0].splitlines()]
    assert [row[2] for row in rows if row[:1] == ["own_bucketed"]] == ["4"]


def test_a_way_that_is_wrong_is_said_first():
    document = wrong_on(1, 2, 4)
    assert PAIR not in scaling_of(document).medians_s
    text = " ".join(told(document).split())
    assert text.startswith("own_bucketed with float32 on the wire is wrong on 4 ranks")


@pytest.mark.parametrize("count", [1, 4])
def test_a_way_that_is_wrong_on_one_count_has_the_times_of_the_others(count):
    text = told(wrong_on(count))
    assert f"own_bucketed with float32 on the wire is wrong on {count} ranks" in text
    rows = [line.split()[:3] for line in text.splitlines()]
    assert ["own_bucketed", "float32", "2"] in rows
    assert ["own_bucketed", "float32", str(count)] not in rows


def test_the_advisor_takes_its_all_reduce(tmp_path):
    path = tmp_path / rank_times.FILE_NAME
    path.write_text(json.dumps(measured()))
    for place in (path, tmp_path):  # a run's folder has it, too
        law = own_study.stored_all_reduce(place, "Some CPU")
        assert isinstance(law, AllReduce)
        assert law.seconds(4, 2**20) == pytest.approx(4e-4)


@pytest.mark.parametrize(
    "content, said",
    [
        (measured(format=2), "of format 2.*run `batchline all-reduce` again"),
        (measured(machine={"device_name": "Other"}), "on Other, and this is Some CPU"),
        (measured(machine={}), "ranks.json is damaged"),
        (measured(all_reduce=[]), "ranks.json is damaged"),
        ({"format": 1}, "ranks.json is damaged"),
        ([], "ranks.json is damaged"),
        (None, "ranks.json is damaged"),
    ],
)
def test_an_all_reduce_that_is_none_of_here_is_one_clear_line(tmp_path, content, said):
    path = tmp_path / rank_times.FILE_NAME
    path.write_bytes(b"\xff" if content is None else json.dumps(content).encode())
    with pytest.raises(UsageError, match=said):
        own_study.stored_all_reduce(path, "Some CPU")
    with pytest.raises(UsageError, match="No such file.*all-reduce --to` writes it"):
        own_study.stored_all_reduce(tmp_path / "none.json", "Some CPU")
