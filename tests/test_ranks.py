"""A run over several devices: problems are dealt to ranks, and one that ends costs
nothing that was measured.
"""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest

from batchline.bench.cases import PROFILES
from batchline.bench.errors import UsageError
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker import ranks
from batchline.bench.measure.worker.ranks import Mail, Place
from batchline.bench.measure.worker.task import Outcome, Task
from batchline.bench.report.sections import machine
from batchline.bench.running import dealing
from batchline.bench.running.dealing import Dealer, DealingMeasurer, Dealt
from batchline.bench.statuses import CRASHED, MEASURED, NOT_REACHED
from batchline.bench.store.journal import Journal, RunBuilder

_LONGEST_S = 1000.0  # by the dealer's clock


class Store(dict):
    """torch.distributed's store, in one process."""

    def set(self, key, value):
        self[key] = value

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key]

    def delete_key(self, key):
        del self[key]


class OwnServer:
    """Rank 0's, of which only the end is asked for."""

    why = None

    def why_ended(self):
        return self.why

    def close(self):
        self.why = "closed"


class Ranks:
    """What all ranks but 0's dealer do, each time that the dealer waits: `answers` is
    called with (rank, method, content), and what it returns is written. A rank in
    `silent` does nothing and says nothing.
    """

    def __init__(self, count, answers):
        self.mail = Mail(Store(), attempt=0)
        self.own = OwnServer()
        self.now_s = 0.0
        self.silent = set()
        self.did = []  # (rank, op's problem), in the order of their doing
        self._answers = answers
        self._numbers = dict.fromkeys(range(count), 0)
        self.dealer = Dealer(
            self.mail, count, self.own, lambda: self.now_s, self._passes
        )

    def _passes(self, seconds):
        self.now_s += 1.0
        assert self.now_s < _LONGEST_S, "it waits for ever"
        for rank in self._numbers:
            if rank not in self.silent:
                self.mail.put(f"beat/{rank}", self.now_s)
                self._answer(rank)

    def _answer(self, rank):
        key = f"to/{rank}/{self._numbers[rank]}"
        if not self.mail.has(key):
            return
        method, content = self.mail.take(key)
        if method == "measure":
            self.did.append((rank, content["scenario"]))
        answer = self._answers(rank, method, content)
        if rank in self.silent:
            return
        self.mail.put(f"from/{rank}/{self._numbers[rank]}", answer)
        self._numbers[rank] += 1


def task(scenario):
    return Task(
        "bmm",
        scenario,
        "float32",
        1,
        (("own", "mine"), ("other", "yours")),
        ("host",),
        Effort(0.01, 0.1),
        Effort(0.01, 0.1),
        0.1,
    )


def measured(rank, method, content):
    """Each entry has one sample: the rank's number and a second."""
    one = dataclasses.asdict(Outcome(MEASURED, samples_s=(1.0 + rank,)))
    return {label: one for label, _ in content["entries"]}


def all_of(made, names):
    """The outcomes of these problems, in turn; all are expected from the start."""
    tasks = [task(name) for name in names]
    made.dealer.expect(tasks)
    return [made.dealer.outcomes(one) for one in tasks]


def test_each_problem_is_measured_once_and_by_one_rank():
    made = Ranks(3, measured)
    names = [f"p{number}" for number in range(10)]
    outcomes = all_of(made, names)
    assert sorted(name for _, name in made.did) == sorted(names)
    assert {rank for rank, _ in made.did} == {0, 1, 2}
    by_rank = {name: rank for rank, name in made.did}
    for name, both in zip(names, outcomes):
        assert set(both) == {"own", "other"}
        for one in both.values():
            assert (one.rank, one.samples_s) == (by_rank[name], (1.0 + one.rank,))


def test_a_problem_that_is_asked_for_again_is_measured_again():
    made = Ranks(2, measured)
    all_of(made, ["p0", "p1"])
    made.dealer.outcomes(task("p0"))
    assert [name for _, name in made.did].count("p0") == 2


def test_no_problem_is_begun_that_nobody_expects():
    made = Ranks(3, measured)
    made.dealer.outcomes(task("alone"))
    assert made.did == [(0, "alone")]


@pytest.mark.parametrize("says_so", [True, False], ids=["says so", "silent"])
def test_what_a_rank_was_at_when_it_ended_is_dealt_again(says_so, capsys):
    def ends(rank, method, content):
        if rank == 1 and content["scenario"] == "p1":
            made.silent.add(1)
            if says_so:
                made.mail.put("ended/1", "its process was ended by SIGKILL")
        return measured(rank, method, content)

    made = Ranks(3, ends)
    outcomes = all_of(made, [f"p{number}" for number in range(8)])
    assert all(one.status == MEASURED for both in outcomes for one in both.values())
    assert [name for _, name in made.did].count("p1") == 2
    assert outcomes[1]["own"].rank in (0, 2)
    told = capsys.readouterr().err
    assert "rank 1 has ended: " in told and "bmm/p1/float32/1 is dealt again" in told
    assert ("SIGKILL" if says_so else "not heard from for 30 s") in told


def test_a_rank_that_measures_for_long_and_says_that_it_is_there_is_waited_for(capsys):
    made = Ranks(2, measured)
    answers = itertools.count()
    made._answer = lambda rank, answer=made._answer: (
        answer(rank) if next(answers) > 100 else None
    )
    assert all_of(made, ["p0", "p1"])[0]["own"].status == MEASURED
    assert made.now_s > dealing._SILENCE_S
    assert sorted(rank for rank, _ in made.did) == [0, 1]
    assert not capsys.readouterr().err


def test_a_problem_that_two_ranks_have_ended_over_is_given_up():
    def ends(rank, method, content):
        if content["scenario"] == "p0":
            made.silent.add(rank)
            made.own.why = "gone" if rank == 0 else made.own.why
            made.mail.put(f"ended/{rank}", "gone")
        return measured(rank, method, content)

    made = Ranks(4, ends)
    first, *others = all_of(made, ["p0", "p1", "p2"])
    assert {one.status for one in first.values()} == {CRASHED}
    assert "2 ranks have ended" in first["own"].reason
    assert all(one.status == MEASURED for both in others for one in both.values())


def test_without_a_rank_left_each_case_says_so():
    def ends(rank, method, content):
        made.silent.add(rank)
        made.own.why = "its process was ended by SIGKILL"
        return None

    made = Ranks(1, ends)
    (outcomes,) = all_of(made, ["p0"])
    assert {one.status for one in outcomes.values()} == {NOT_REACHED}
    assert "no rank is left" in outcomes["own"].reason


def measurer_of(made, known={}):
    """A run's measurer, over these ranks."""
    the_plan = SimpleNamespace(profile=PROFILES["smoke"], device="cpu")
    return DealingMeasurer(the_plan, None, (), None, Dealt([], made.dealer, known))


def test_the_ceilings_are_the_best_of_all_ranks():
    def look(rank, method, content):
        if method == "measure":
            return measured(rank, method, content)
        assert content["dtypes"] == ["float32"]
        best = {"copy_bytes_per_s": 1e9 * (1 + rank), "launch_s": {"host": 1.0 + rank}}
        return (None, "busy") if rank == 2 else (best, None)

    made = Ranks(3, look)
    made.dealer.expect([task("p0"), task("p1"), task("p2")])
    made.dealer.outcomes(task("p0"))  # the others may be at theirs
    best, why_not = measurer_of(made).ceilings()
    assert best["copy_bytes_per_s"] == 2e9 and best["launch_s"]["host"] == 1.0
    assert why_not is None


def test_all_is_over_for_the_ranks_when_the_dealer_is_closed():
    made = Ranks(2, measured)
    made.dealer.close()
    assert made.mail.has("over") and made.own.why == "closed"


def test_mail_of_an_attempt_is_not_the_next_ones_and_what_is_kept_is():
    store = Store()
    first, second = Mail(store, 0), Mail(store, 1)
    first.put("over", True)
    first.put("folder", "runs/1", kept=True)
    assert not second.has("over")
    assert second.read("folder", kept=True) == "runs/1"
    assert all(isinstance(json.loads(value), (bool, str)) for value in store.values())


def test_after_a_restart_what_was_measured_is_known(tmp_path, capsys):
    store = Store()
    builder = RunBuilder(Journal(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    builder.begin()
    ids = [f"grad_reduce/torch_mean/digits/float32/B{batch}" for batch in (1, 3)]
    builder.add_plan(ids)
    builder.add_outcome(ids[0], MEASURED, "", (1e-5, 2e-5), 3, {"clock": "host"}, 2)
    builder.close()
    assert dealing._known_outcomes(Mail(store, 0), tmp_path / "runs") == {}
    known = dealing._known_outcomes(Mail(store, 1), tmp_path / "next")
    expected = Outcome(MEASURED, "", (1e-5, 2e-5), 3, {"clock": "host"}, 2)
    assert known == {ids[0]: expected}
    assert "1 cases of" in capsys.readouterr().err


TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def test_a_place_is_what_torchrun_says():
    assert ranks.place(TORCHRUN) == Place(5, 8, 1, 4, 1, 2)
    assert ranks.place({}) is None
    assert ranks.place(TORCHRUN | {"WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        (TORCHRUN | {"RANK": "first"}, "no numbers"),
    ],
)
def test_a_place_that_is_none_is_one_clear_line(environment, said):
    with pytest.raises(UsageError, match=said) as raised:
        ranks.place(environment)
    assert "torchrun" in str(raised.value)


@pytest.fixture
def cores(monkeypatch):
    """Sets how many cores there are; returns those that the process has taken."""
    taken = []

    def have(count):
        monkeypatch.setattr(ranks.os, "sched_getaffinity", lambda pid: range(count))
        monkeypatch.setattr(
            ranks.os, "sched_setaffinity", lambda pid, of: taken.append(list(of))
        )
        return taken

    return have


def test_each_rank_has_its_part_of_the_cores(cores):
    taken = cores(9)
    for local in range(4):
        ranks.take_device(Place(local, 4, local, 4, 0, 0), "cpu")
    assert taken == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_more_ranks_than_cores_share_them(cores):
    taken = cores(2)
    ranks.take_device(Place(0, 4, 0, 4, 0, 0), "cpu")
    assert taken == []


@pytest.mark.parametrize(
    "named, local, mine", [(None, 1, "1"), ("3,7", 1, "7"), ("GPU-a,GPU-b", 0, "GPU-a")]
)
def test_each_rank_sees_one_gpu(cores, monkeypatch, named, local, mine):
    cores(8)
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv(ranks._GPUS, named or "")
    if named is None:
        monkeypatch.delenv(ranks._GPUS)
    ranks.take_device(Place(local, 2, local, 2, 0, 0), "auto")
    assert ranks.os.environ[ranks._GPUS] == mine


def test_more_ranks_than_gpus_are_refused_with_what_to_do(cores, monkeypatch):
    cores(8)
    monkeypatch.setenv(ranks._GPUS, "0,1")
    with pytest.raises(UsageError, match="4 ranks, and 2 GPUs.*--nproc-per-node=2"):
        ranks.take_device(Place(0, 4, 0, 4, 0, 0), "cuda")


def test_ranks_of_two_kinds_of_device_are_no_run():
    mail = Mail(Store(), 0)
    mail.put("hello/1", {"device_name": "NVIDIA A100", "node": 1})
    with pytest.raises(UsageError, match="rank 1 on NVIDIA A100: make a run of each"):
        dealing._gather(Place(0, 2, 0, 1, 0, 0), mail, "NVIDIA H200")


def test_a_case_keeps_the_rank_that_measured_it_when_its_gain_is_refuted():
    builder = RunBuilder()
    builder.begin()
    name = "grad_reduce/torch_mean/digits/float32/B1"
    builder.add_outcome(name, MEASURED, "", (1e-5,), 1, {}, 3)
    builder.add_confirmations({name: {"status": "invalid", "reason": "gone"}})
    (record,) = builder.records
    assert (record.rank, record.status) == (3, "invalid")


def test_known_cases_are_not_dealt():
    made = Ranks(1, measured)
    one = Outcome(MEASURED, samples_s=(1.0,))
    first, second = (
        [SimpleNamespace(id=name, problem=("bmm", name, "float32", 1), variant=None)]
        for name in ("p0", "p1")
    )
    second[0].variant = SimpleNamespace(name="own")
    measurer = measurer_of(made, {first[0].id: one})
    measurer.expect([first, second])
    assert measurer.outcomes(first) == {first[0].id: one}
    assert made.did == []
    measurer.outcomes(second)
    assert len(made.did) == 1


@pytest.mark.parametrize(
    "nodes, said", [((0, 0), "2 ranks on one machine"), ((0, 1), "on 2 machines")]
)
def test_the_report_says_on_how_many_machines_the_ranks_were(nodes, said):
    places = [{"rank": rank, "node": node} for rank, node in enumerate(nodes)]
    assert said in machine._devices(places)
