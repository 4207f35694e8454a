"""A wrong kernel and an honest neighbour, measured together in a process of their own."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Mapping

from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.task import Outcome, Task

HONEST = "torch_bmm"
_DEADLINE_S = 180
_EFFORT = Effort(precision=0.05, seconds=0.1)


def measured(name: str) -> tuple[Mapping[str, Outcome], tuple[str | None, str]]:
    """The outcomes of a file of tests/wrong_kernels and of an honest neighbour, and
    (whose, reason) where the process was tampered with.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["batchline.bench.measure.worker.runner", "tests.measured"]
    )
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(name, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_DEADLINE_S):
            raise TimeoutError(name)
        return ours.recv()
    finally:
        process.kill()
        process.join()


def _measure(name: str, connection) -> None:
    import torch

    from batchline.bench.measure.machine.process_state import Tampered
    from batchline.bench.measure.worker.runner import Runner

    torch.set_num_threads(1)
    runner = Runner("cpu")
    module = importlib.import_module(f"tests.wrong_kernels.{name}")
    module.OP.variant(backend="torch")(getattr(module, name))
    scenario = getattr(module, "SCENARIO", "tiny_16")
    task = Task(
        module.OP.name,
        scenario,
        "float32",
        4,
        ((name, name), (HONEST, HONEST)),
        ("host", "host_cold"),
        _EFFORT,
        _EFFORT,
        warm_up_s=0.01,
    )
    try:
        connection.send((runner.measure(task), (None, "")))
    except Tampered as tampered:
        connection.send(({}, (tampered.whose, tampered.reason)))
