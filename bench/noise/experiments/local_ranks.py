"""Ranks on this machine: a process each, gloo between them, or nccl where the machine
has several GPUs.

All ranks are started once, and the smaller groups are parts of them. The ranks of a
group begin together, and the slowest of them is timed.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path

import torch
from torch import distributed

from batchline.bench import texts, units
from batchline.bench.errors import UsageError
from batchline.bench.measure.machine import memory, state
from batchline.bench.measure.worker.worker import be_a_good_child
from batchline.bench.stopping import put_off_and_kept_from_children
from batchline.kernels import cgroups

NCCL, GLOO = "nccl", "gloo"
_FEWEST, _MOST = 5, 30  # samples of a piece of work
_WORK_S = 0.3  # for the samples of one
_LONGEST_S = 180  # for all of it
_ENDING_S = 10  # between the first rank's end and the answer
_PROCESS_BYTES = (
    450 * 2**20
)  # that a rank holds with torch and Numba: 423 MiB were seen


def backend_of(device: str) -> tuple[str, int]:
    """The backend, and how many ranks it can have, each with a device: all GPUs, or as
    many processes as are wanted (0).
    """
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    return (NCCL, gpus) if gpus > 1 else (GLOO, 0)


def cores() -> int:
    """Those that gloo's ranks have between them: what this process may use, within a
    container's quota.
    """
    count = len(state.cores() or ()) or os.cpu_count() or 1
    return min(count, cgroups.whole_cores() or count)


def require_memory(count: int, each_bytes: int) -> None:
    """Raise UsageError where the free memory can't have so many gloo ranks with so many
    bytes each.
    """
    free_bytes = memory.free_bytes()
    wanted_bytes = count * (_PROCESS_BYTES + each_bytes)
    if free_bytes is not None and wanted_bytes > free_bytes:
        raise UsageError(
            f"{count:,} ranks would take {units.size(wanted_bytes)}, and {units.size(free_bytes)} are free: "
            "give fewer --ranks or --parameters, or smaller --batches"
        )


def run(
    work: Callable, backend: str, count: int, *arguments, longest_s: float = _LONGEST_S
):
    """What `work(rank, device, *arguments)` returns on rank 0, called on each of `count`
    ranks whose process group is there. A function of a module; what it is given and
    returns is pickled.

    Raises:
        UsageError: where a rank fails or ends, or they are not done in time.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        start = f"file://{Path(folder) / 'ranks'}"
        ranks = [
            context.Process(
                target=_be_rank,
                args=(rank, backend, start, count, sender, work, arguments),
                daemon=True,
            )
            for rank in range(count)
        ]
        with put_off_and_kept_from_children():
            for rank in ranks:
                rank.start()
        sender.close()
        try:
            why_not, answer = _answer(receiver, ranks, longest_s)
        finally:
            for rank in ranks:
                rank.terminate()
                rank.join()
    if why_not:
        raise UsageError(f"{count} ranks could not be timed over {backend}: {why_not}")
    return answer


def _answer(receiver, ranks: Sequence, longest_s: float) -> tuple[str, object]:
    """What the first rank to send has sent: why there is no answer ("" where there is),
    and the answer.
    """
    sentinels = [rank.sentinel for rank in ranks]
    ready = connection.wait([receiver, *sentinels], longest_s)
    if not ready:
        return f"they were not done after {longest_s} s", None
    try:
        if receiver in ready or receiver.poll(_ENDING_S):  # others may end just before
            return receiver.recv()
    except EOFError:
        pass
    codes = [rank.exitcode for rank in ranks if rank.exitcode is not None]
    return f"a rank has ended without an answer (exit codes {codes})", None


def _be_rank(rank, backend, start, count, sender, work, arguments) -> None:
    """One rank's part; rank 0 sends the answer, and whoever fails sends why."""
    be_a_good_child()
    try:
        torch.set_num_threads(1)
        device = "cpu"
        if backend == NCCL:
            torch.cuda.set_device(rank)
            device = "cuda"
        distributed.init_process_group(
            backend,
            init_method=start,
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=_LONGEST_S),
        )
        answer = work(rank, device, *arguments)
        if rank == 0:
            sender.send(("", answer))
        distributed.destroy_process_group()
    except Exception as error:
        sender.send((texts.error_line(error), None))


def groups(rank: int, counts: Sequence[int]) -> Iterator[tuple[int, object]]:
    """Each count of ranks and its group, one after another; where this rank is in none
    of a count, that is left out.
    """
    for count in counts:
        group = distributed.new_group(list(range(count)))
        if rank < count:
            yield count, group
        distributed.barrier()


def samples_s(
    works: Mapping[Hashable, Callable[[], object]], group, device: str
) -> dict[Hashable, list[float]]:
    """Seconds of the slowest rank for each piece of work, each time from where all have
    come to. The works take turns.

    How many there are follows from the first times of the slowest rank, which all ranks
    have, so that all stop together.
    """
    for work in works.values():
        slowest_s(work, group, device)  # the first call compiles and allocates
    taken_s = {name: [slowest_s(work, group, device)] for name, work in works.items()}
    first_s = sum(one for (one,) in taken_s.values())
    turns = int(min(_MOST, max(_FEWEST, len(works) * _WORK_S / first_s)))
    for _ in range(turns - 1):
        for name, work in works.items():
            taken_s[name].append(slowest_s(work, group, device))
    return taken_s


def slowest_s(work: Callable[[], object], group, device: str) -> float:
    """Seconds of one call on the slowest rank of the group."""
    distributed.barrier(group)
    start_s = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    taken = torch.tensor(
        [time.perf_counter() - start_s], dtype=torch.float64, device=device
    )
    distributed.all_reduce(taken, op=distributed.ReduceOp.MAX, group=group)
    return float(taken)
