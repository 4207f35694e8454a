"""A run over several devices: rank 0 deals the problems to the ranks, one at a time, and
gets the outcomes back (bench.measure.worker.ranks).

All variants of a problem are measured by one rank, so that they are compared on one
device. A rank that ends, or is not heard from, costs the time of the problem that it
was at: that one is dealt again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench.cases import Case
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.measure.ahead import folder as kernels
from batchline.bench.measure.worker import ranks
from batchline.bench.measure.worker.task import Outcome, Task
from batchline.bench.running.session import Measurer
from batchline.bench.stats import roofline
from batchline.bench.statuses import CRASHED, NOT_REACHED
from batchline.bench.store import journal

_START_S = 300  # for all ranks to say that they are there
_SILENCE_S = 30  # after which a rank is taken for one that has ended
_LOOK_S = 0.02  # how often rank 0 looks for answers
_MOST_ENDS = 2  # of ranks over one problem
_FOLDER = "folder"  # the key of the run's folder

Key = tuple[str, str, str, int]


class Dealer:
    """Deals tasks to ranks and gathers their answers. The first to be dealt are those
    that are asked for, then those that are expected.

    `mail` is as bench.measure.worker.ranks.Mail; `server` is rank 0's own.
    """

    def __init__(
        self,
        mail,
        count: int,
        server,
        now_s: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ):
        self._mail = mail
        self._server = server
        self._now_s = now_s
        self._wait = wait
        self._live = list(range(count))
        self._asked = Counter()  # requests, by rank
        self._at: dict[int, tuple[str, Task | None]] = {}  # what each is doing
        self._heard: dict[int, tuple[object, float]] = {}
        self._looks: dict[int, object] = {}  # the answers about ceilings, by rank
        self._first: deque[Task] = deque()
        self._expected: Iterator[Task] = iter(())
        self._dealt: set[Key] = set()  # at least once
        self._open: set[Key] = (
            set()
        )  # dealt, or to be dealt first, and not yet asked for
        self._ends: Counter[Key] = Counter()
        self._outcomes: dict[Key, dict[str, Outcome]] = {}

    def expect(self, tasks: Iterable[Task]) -> None:
        """These will be asked for, most likely in this order."""
        self._expected = iter(tasks)

    def outcomes(self, task: Task) -> dict[str, Outcome]:
        """The outcomes of a task, by label, once a rank has measured it."""
        key = _key(task)
        if key not in self._open:
            self._open.add(key)
            self._dealt.add(key)
            self._first.append(task)
        while key not in self._outcomes:
            if not self._live:
                why = "no rank is left that could measure it"
                return dict.fromkeys(task.labels, Outcome(NOT_REACHED, why))
            self._deal()
            self._gather()
        self._open.remove(key)
        return self._outcomes.pop(key)

    def ceilings(self, dtypes: Sequence[str], effort) -> list:
        """What each rank says of its ceilings, as Runner.ceilings does, once it is done
        with its problem.
        """
        content = {"dtypes": dtypes, "effort": dataclasses.asdict(effort)}
        asked: set[int] = set()
        self._looks = {}
        while any(rank not in self._looks for rank in self._live):
            for rank in set(self._live) - asked - self._at.keys():
                self._ask(rank, "ceilings", content, None)
                asked.add(rank)
            self._gather()
        return list(self._looks.values())

    def close(self) -> None:
        """Let all ranks end."""
        self._live = []
        with contextlib.suppress(RuntimeError):  # where torchrun itself has ended
            self._mail.put("over", True)
        self._server.close()

    def _deal(self) -> None:
        """A task to each rank that has none."""
        for rank in self._live:
            if rank not in self._at:
                task = self._next()
                if task is None:
                    return
                self._ask(rank, "measure", dataclasses.asdict(task), task)

    def _next(self) -> Task | None:
        if self._first:
            return self._first.popleft()
        for task in self._expected:
            key = _key(task)
            if key not in self._dealt:
                self._dealt.add(key)
                self._open.add(key)
                return task
        return None

    def _ask(self, rank: int, method: str, content, task: Task | None) -> None:
        number = self._asked[rank]
        self._asked[rank] += 1
        self._mail.put(f"to/{rank}/{number}", [method, content])
        self._at[rank] = f"from/{rank}/{number}", task

    def _gather(self) -> None:
        """Take the answers that have come; wait a moment where there is none."""
        answered = [rank for rank, (key, _) in self._at.items() if self._mail.has(key)]
        for rank in answered:
            key, task = self._at.pop(rank)
            answer = self._mail.take(key)
            if task is None:
                self._looks[rank] = answer
            else:
                self._outcomes[_key(task)] = ranks.outcomes_of(answer, rank)
        for rank in list(self._live):
            if why := self._why_ended(rank):
                self._lose(rank, why)
        if not answered:
            self._wait(_LOOK_S)

    def _why_ended(self, rank: int) -> str | None:
        if rank == 0:
            return self._server.why_ended()
        if self._mail.has(f"ended/{rank}"):
            return self._mail.read(f"ended/{rank}")
        key, now_s = f"beat/{rank}", self._now_s()
        beat = self._mail.read(key) if self._mail.has(key) else None
        last, since_s = self._heard.get(rank, (beat, now_s))
        self._heard[rank] = beat, (since_s if beat == last else now_s)
        if now_s - self._heard[rank][1] > _SILENCE_S:
            return f"it was not heard from for {_SILENCE_S} s"
        return None

    def _lose(self, rank: int, why: str) -> None:
        """Go on without a rank; what it was at is dealt again, unless others have ended
        over that.
        """
        self._live.remove(rank)
        _, task = self._at.pop(rank, ("", None))
        count = len(self._live)
        left = "1 rank is left" if count == 1 else f"{count} ranks are left"
        if task is None:
            complain(f"rank {rank} has ended: {why}; {left}")
            return
        key = _key(task)
        self._ends[key] += 1
        name = "/".join(map(str, key))
        if self._ends[key] < _MOST_ENDS:
            complain(f"rank {rank} has ended: {why}; {left}, and {name} is dealt again")
            self._first.append(task)
            return
        complain(f"rank {rank} has ended: {why}; {left}, and {name} is given up")
        lost = Outcome(CRASHED, f"{_MOST_ENDS} ranks have ended over its problem")
        self._outcomes[key] = dict.fromkeys(task.labels, lost)


def _key(task: Task) -> Key:
    return task.op, task.scenario, task.dtype, task.batch


@dataclass(frozen=True)
class Dealt:
    """The ranks of a run: where each is, what deals to them, and the outcomes by case
    that an attempt before torchrun's restart has left.
    """

    places: list[dict]
    dealer: Dealer
    known: Mapping[str, Outcome]


@contextlib.contextmanager
def started(
    at: ranks.Place, device: str, device_name: str, deadline_s: float, run_folder: Path
) -> Iterator[Dealt]:
    """All ranks, as long as the block lasts.

    Raises:
        UsageError: if they don't come, or are no ranks of one run.
    """
    cores = len(os.sched_getaffinity(0))
    if device == "cpu" and cores < at.local_count:
        complain(
            f"{at.local_count} ranks share {cores} cores: what one does costs the others time"
        )
    mail = ranks.join(at, hosts=True)
    try:
        places = _gather(at, mail, device_name)
        known = _known_outcomes(mail, run_folder)
        server = ranks.Server(at, device, deadline_s)
        dealer = Dealer(mail, at.count, server)
        with contextlib.closing(dealer):
            yield Dealt(places, dealer, known)
    finally:
        with contextlib.suppress(RuntimeError):  # where torchrun itself has ended
            mail.put("over", True)


class DealingMeasurer(Measurer):
    """Has each problem measured on the device of one of the ranks.

    The arguments are a Measurer's, and `dealt`.
    """

    def __init__(self, the_plan, isolation, clocks, ahead, dealt: Dealt):
        super().__init__(the_plan, isolation, clocks, ahead)
        self._dealer = dealt.dealer
        self._known = dealt.known

    def ceilings(self) -> tuple[dict | None, str | None]:
        """The best of all ranks' ceilings: nothing is impossible that one of them can
        do.
        """
        answers = self._dealer.ceilings(*self.ceilings_asked)
        best = None
        for ceilings, _ in answers:
            if ceilings:
                best = roofline.best_of(best, ceilings) if best else ceilings
        why_not = next((why for _, why in answers if why), "no rank is left")
        return best, None if best else why_not

    def expect(self, problems: Iterable[Sequence[Case]]) -> None:
        self._dealer.expect(
            self.task(cases) for cases in problems if not self._are_known(cases)
        )

    def outcomes(self, cases: Sequence[Case]) -> dict[str, Outcome]:
        if self._are_known(cases):
            return {case.id: self._known[case.id] for case in cases}
        return self._dealer.outcomes(self.task(cases))

    def release(self) -> None:
        self._dealer.close()

    def _are_known(self, cases: Sequence[Case]) -> bool:
        return all(case.id in self._known for case in cases)


def _gather(
    at: ranks.Place, mail: ranks.Mail, device_name: str
) -> list[dict[str, object]]:
    """Wait for all ranks, and let them begin; where each is: its rank, the number of
    its machine, its device's name.

    Raises:
        UsageError: if one does not come, or has another kind of device: what is
            measured on two kinds is not one run.
    """
    places = [{"rank": at.rank, "node": at.node, "device_name": device_name}]
    until_s = time.monotonic() + _START_S
    for rank in range(1, at.count):
        while not mail.has(f"hello/{rank}"):
            if time.monotonic() > until_s:
                raise UsageError(f"rank {rank} has not come in {_START_S} s")
            time.sleep(_LOOK_S)
        places.append({"rank": rank, **mail.read(f"hello/{rank}")})
    others = [one for one in places if one["device_name"] != device_name]
    if others:
        raise UsageError(
            f"rank 0 measures on {device_name} and rank {others[0]['rank']} on "
            f"{others[0]['device_name']}: make a run of each, and compare them"
        )
    mail.put("begin", {"node": at.node, "kernels": _kept_kernels()})
    return places


def _kept_kernels() -> dict[str, str]:
    """The variables that tell a process where this run's compiled kernels are."""
    return {name: os.environ[name] for name in kernels.VARIABLES if name in os.environ}


def _known_outcomes(mail: ranks.Mail, run_folder: Path) -> dict[str, Outcome]:
    """What an attempt before torchrun's restart has measured, by case; from now on this
    attempt's folder is where the next one looks.
    """
    known = {}
    if mail.has(_FOLDER, kept=True):
        before = Path(mail.read(_FOLDER, kept=True))
        if (before / journal.FILE_NAME).exists():
            records = journal.read(before).records
            known = {
                record.id: _outcome(record)
                for record in records
                if record.status != NOT_REACHED
            }
            complain(f"{len(known)} cases of {before} are taken as they are")
    mail.put(_FOLDER, os.fspath(run_folder.resolve()), kept=True)
    return known


def _outcome(record) -> Outcome:
    return Outcome(
        record.status,
        record.reason,
        record.samples_s,
        record.iterations,
        record.facts,
        record.rank,
    )
