"""Several devices measured by one run, with a process for each: its ranks, as torchrun
starts them.

Rank 0 runs the session, deals the problems and writes the run (bench.running.dealing).
Each rank, rank 0 too, has a server: a process that measures on the rank's device, by an
Isolation of its own. The rank itself only watches its server. So torchrun, which ends
all ranks when one of them ends, does not do so for a server that has died.

The ranks write to each other in the store of torch.distributed, as JSON: a variant can
reach that store, and nothing that is read from it is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from batchline.bench import texts
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.measure import stand_in
from batchline.bench.measure.ahead.folder import kernels_folder
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import Outcome, Task, WorkerLost
from batchline.bench.measure.worker.worker import end_with_parent
from batchline.bench.stopping import put_off_and_kept_from_children

BEAT_S = 1.0  # a rank says so often that it is there
_LOOK_S = 0.05  # how often a server looks for its next task
_JOIN_S = 120  # for all ranks to have started
_END_S = 5  # for a server to end
_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """Where torchrun has put this process: `rank` of `count`, and `local` of the
    `local_count` on machine number `node`. `attempt` counts torchrun's restarts.
    """

    rank: int
    count: int
    local: int
    local_count: int
    node: int
    attempt: int


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place; None where it is the only one.

    Raises:
        UsageError: where the variables that say so are not complete.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    needed = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    if missing := [name for name in needed if name not in environment]:
        raise UsageError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']} and {missing[0]} is not set: "
            "start with torchrun, or unset WORLD_SIZE"
        )
    rank, count = environment["RANK"], environment["WORLD_SIZE"]
    numbers = (
        rank,
        count,
        environment.get("LOCAL_RANK", rank),
        environment.get("LOCAL_WORLD_SIZE", count),
        environment.get("GROUP_RANK", 0),
        environment.get("TORCHELASTIC_RESTART_COUNT", 0),
    )
    try:
        return Place(*map(int, numbers))
    except ValueError as error:
        raise UsageError(
            f"a rank's variables are no numbers ({error}): start with torchrun"
        ) from error


def take_device(at: Place, device: str) -> None:
    """From now on this process and those that it starts see the rank's device alone: a
    GPU, and its part of the cores where there is one for each rank.

    Args:
        device: as `batchline run` is asked for it.

    Raises:
        UsageError: where there are fewer GPUs than ranks.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // at.local_count
    if share:
        os.sched_setaffinity(0, cores[at.local * share : (at.local + 1) * share])
    if device == "cpu" or stand_in.is_on():
        return
    named = os.environ.get(_GPUS)
    gpus = (
        list(map(str, range(torch.cuda.device_count())))
        if named is None
        else [one for one in named.split(",") if one]
    )
    if gpus and at.local_count > len(gpus):
        raise UsageError(
            f"{at.local_count} ranks, and {len(gpus)} GPUs here: start torchrun with "
            f"--nproc-per-node={len(gpus)}"
        )
    if gpus:
        os.environ[_GPUS] = gpus[at.local]


class Mail:
    """What ranks write to each other, by key. What is `kept` outlives torchrun's
    restarts; all else is of one attempt.
    """

    def __init__(self, store, attempt: int):
        self._store = store
        self._attempt = attempt

    def put(self, key: str, content, kept: bool = False) -> None:
        """Write JSON's kinds of data."""
        self._store.set(self._full(key, kept), json.dumps(content))

    def has(self, key: str, kept: bool = False) -> bool:
        return self._store.check([self._full(key, kept)])

    def read(self, key: str, kept: bool = False):
        return json.loads(self._store.get(self._full(key, kept)))

    def take(self, key: str):
        """Read it, and remove it."""
        content = self.read(key)
        self._store.delete_key(self._full(key, False))
        return content

    def _full(self, key: str, kept: bool) -> str:
        return f"batchline/{'kept' if kept else self._attempt}/{key}"


def join(at: Place, hosts: bool = False) -> Mail:
    """The mail of all ranks. `hosts`: whether this process has the store where torchrun
    has none.

    Raises:
        UsageError: if the store can't be reached.
    """
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store = distributed.TCPStore(
            address,
            int(port),
            is_master=hosts and not by_launcher,
            timeout=timedelta(seconds=_JOIN_S),
            wait_for_workers=False,
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"the ranks' store at {address}:{port} can't be reached: {texts.error_line(error)}"
        ) from error
    return Mail(store, at.attempt)


class Server:
    """The process that measures on a rank's device, as long as this one lives."""

    def __init__(self, at: Place, device: str, deadline_s: float):
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(at, device, deadline_s))
        with put_off_and_kept_from_children():
            self._process.start()

    def why_ended(self) -> str | None:
        """None while it measures."""
        code = self._process.exitcode
        if code is None:
            return None
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"

    def close(self) -> None:
        self._process.terminate()
        self._process.join(_END_S)
        self._process.kill()
        self._process.join()


def _serve(at: Place, device: str, deadline_s: float) -> None:
    """Do what rank 0 asks of this rank, one thing after another."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # stopping it is its parent's
    mail = join(at)
    with contextlib.closing(Isolation(device, deadline_s)) as isolation:
        for number in itertools.count():
            key = f"to/{at.rank}/{number}"
            while not mail.has(key):
                time.sleep(_LOOK_S)
            method, content = mail.take(key)
            mail.put(f"from/{at.rank}/{number}", _METHODS[method](isolation, content))


def _measure(isolation: Isolation, content: Mapping) -> dict:
    outcomes = isolation.measure(_task(content))
    return {label: dataclasses.asdict(one) for label, one in outcomes.items()}


def _task(content: Mapping) -> Task:
    """The task that `dataclasses.asdict` has made JSON of."""
    return Task(
        **content
        | {
            "entries": tuple(map(tuple, content["entries"])),
            "clocks": tuple(content["clocks"]),
            "effort": Effort(**content["effort"]),
            "other_effort": Effort(**content["other_effort"]),
        }
    )


def outcomes_of(answer: Mapping, rank: int) -> dict[str, Outcome]:
    """What a server of that rank has answered to "measure", by label."""
    return {
        label: Outcome(
            **fields | {"samples_s": tuple(fields["samples_s"]), "rank": rank}
        )
        for label, fields in answer.items()
    }


def _ceilings(isolation: Isolation, content: Mapping) -> tuple[dict | None, str | None]:
    try:
        return isolation.call(
            "ceilings", tuple(content["dtypes"]), Effort(**content["effort"])
        )
    except (WorkerLost, RuntimeError) as error:
        return None, str(error)


_METHODS = {"measure": _measure, "ceilings": _ceilings}


def attend(at: Place, device: str, device_name: str, deadline_s: float) -> None:
    """Be a rank other than 0: have what it deals measured here, until it says that all
    is over.

    Raises:
        UsageError: if rank 0 has ended without a word.
    """
    mail = join(at)
    mail.put(f"hello/{at.rank}", {"device_name": device_name, "node": at.node})
    try:
        begun = _next(mail, "begin")
        if begun is None:
            return
        with contextlib.ExitStack() as stack:
            if begun["node"] == at.node:
                os.environ.update(begun["kernels"])
            elif device == "cuda":
                stack.enter_context(kernels_folder())
            server = Server(at, device, deadline_s)
            stack.enter_context(contextlib.closing(server))
            _watch(at, mail, server)
    except distributed.DistError as error:
        raise UsageError(f"rank 0 has ended before rank {at.rank} was done") from error


def _next(mail: Mail, key: str):
    """What comes under the key; None if all is over first."""
    while not mail.has(key):
        if mail.has("over"):
            return None
        time.sleep(_LOOK_S)
    return mail.read(key)


def _watch(at: Place, mail: Mail, server: Server) -> None:
    """Say that the rank is there, and once that its server is not any more."""
    has_said = False
    for beat in itertools.count():
        if mail.has("over"):
            return
        mail.put(f"beat/{at.rank}", beat)
        why = server.why_ended()
        if why and not has_said:
            mail.put(f"ended/{at.rank}", why)
            complain(f"rank {at.rank}: {why}")
            has_said = True
        time.sleep(BEAT_S)
