"""The time of an all-reduce over ranks, by torch.distributed: gloo between processes of
this machine, or nccl where it has several GPUs.

All ranks are started once, and the smaller groups are parts of them. The ranks of a
group begin together, and the slowest of them is timed.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path

import torch
import torch.distributed as dist

from batchline.bench import texts
from batchline.bench.errors import UsageError
from batchline.bench.measure.worker.worker import be_a_good_child

_COUNTS = (2, 4)  # of gloo's ranks: more than these share the cores of most machines
_SMALLEST_BYTES = 4096  # whose time is nearly all latency
_FEWEST, _MOST = 5, 30  # samples of a size
_SIZE_S = 0.3  # for the samples of a size
_LONGEST_S = 180  # for all of it
_ENDING_S = 10  # between the first rank's end and the answer


def measure(gradient_bytes: int, most_ranks: int, device: str) -> dict:
    """backend; cores, of this machine; rows: [{"ranks", "bytes", "samples_s"}], of the
    gradient's size and of smaller ones.

    Raises:
        UsageError: where a rank fails or ends, or they are not done in time.
    """
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    backend = "nccl" if gpus > 1 else "gloo"
    counts = (
        [2**power for power in range(1, gpus.bit_length())] if gpus > 1 else _COUNTS
    )
    counts = [count for count in counts if count <= max(2, most_ranks)]
    sizes = sorted(
        {max(_SMALLEST_BYTES, gradient_bytes // part) for part in (1, 4, 16, 2**30)}
    )
    rows = _run(backend, counts, sizes)
    return {"backend": backend, "cores": os.cpu_count(), "rows": rows}


def _run(backend: str, counts: Sequence[int], sizes: Sequence[int]) -> list[dict]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        start = f"file://{Path(folder) / 'ranks'}"
        ranks = [
            context.Process(
                target=_be_rank,
                args=(rank, backend, start, tuple(counts), tuple(sizes), sender),
                daemon=True,
            )
            for rank in range(max(counts))
        ]
        for rank in ranks:
            rank.start()
        sender.close()
        try:
            answer = _answer(receiver, ranks)
        finally:
            for rank in ranks:
                rank.terminate()
                rank.join()
    if isinstance(answer, str):
        raise UsageError(f"the all-reduce could not be timed over {backend}: {answer}")
    return answer


def _answer(receiver, ranks: Sequence) -> list[dict] | str:
    """What the first rank to send has sent: the rows, or why there are none."""
    sentinels = [rank.sentinel for rank in ranks]
    ready = connection.wait([receiver, *sentinels], _LONGEST_S)
    if not ready:
        return f"it was not done after {_LONGEST_S} s"
    try:
        if receiver in ready or receiver.poll(_ENDING_S):  # others may end just before
            return receiver.recv()
    except EOFError:
        pass
    codes = [rank.exitcode for rank in ranks if rank.exitcode is not None]
    return f"a rank has ended without an answer (exit codes {codes})"


def _be_rank(rank: int, backend: str, start: str, counts, sizes, sender) -> None:
    """One rank's part; rank 0 sends the rows, and whoever fails sends why."""
    be_a_good_child()
    try:
        torch.set_num_threads(1)
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            backend,
            init_method=start,
            rank=rank,
            world_size=max(counts),
            timeout=timedelta(seconds=_LONGEST_S),
        )
        rows = _rows(rank, backend, counts, sizes)
        if rank == 0:
            sender.send(rows)
        dist.destroy_process_group()
    except Exception as error:
        sender.send(texts.error_line(error))


def _rows(
    rank: int, backend: str, counts: Sequence[int], sizes: Sequence[int]
) -> list[dict]:
    device = "cuda" if backend == "nccl" else "cpu"
    rows = []
    for count in counts:
        group = dist.new_group(list(range(count)))
        for size in sizes if rank < count else ():
            gradient = torch.zeros(size // 4, device=device)
            samples_s = _samples(gradient, group)
            rows.append({"ranks": count, "bytes": size, "samples_s": samples_s})
        dist.barrier()
    return rows


def _samples(gradient: torch.Tensor, group) -> list[float]:
    """Seconds of the slowest rank, each time from where all have come to.

    How many there are follows from the first one's time of the slowest rank, which all
    ranks have, so that all stop together.
    """
    samples_s = [_slowest_s(gradient, group) for _ in range(2)][1:]
    left = int(min(_MOST, max(_FEWEST, _SIZE_S / samples_s[0])))
    samples_s += [_slowest_s(gradient, group) for _ in range(left - 1)]
    return samples_s


def _slowest_s(gradient: torch.Tensor, group) -> float:
    dist.barrier(group)
    start_s = time.perf_counter()
    dist.all_reduce(gradient, group=group)
    if gradient.is_cuda:
        torch.cuda.synchronize()
    taken = torch.tensor([time.perf_counter() - start_s], dtype=torch.float64)
    taken = taken.to(gradient.device)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX, group=group)
    return float(taken)
