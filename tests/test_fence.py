"""The fence: each thing that a turn could leave changed is found and named, and what a
library does is not.
"""

import atexit
import builtins
import contextlib
import ctypes
import gc
import os
import random
import resource
import signal
import statistics
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import library as registry

from batchline import kernels
from batchline.bench.measure.checking import check
from batchline.bench.measure.checking.fence import Fence
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.timing import clocks
from batchline.bench.measure.worker import preparing
from batchline.bench.stats import roofline
from batchline.kernels.bmm import bmm


@contextlib.contextmanager
def _attribute(where, name, value):
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


@contextlib.contextmanager
def _done(do, undo):
    do()
    try:
        yield
    finally:
        undo()


@contextlib.contextmanager
def _thread_at_work():
    ended = threading.Event()
    thread = threading.Thread(target=lambda: ended.wait(30), name="helper")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _handler():
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextlib.contextmanager
def _limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else min(4096, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@contextlib.contextmanager
def _only_one_core():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def _tuning_file():
    path = bmm.folder / "tuning" / "left_behind.json"
    path.write_text("{}")
    try:
        yield
    finally:
        path.unlink()


@contextlib.contextmanager
def _child():
    child = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "30")
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _threads():
    before = torch.get_num_threads()
    return _done(
        lambda: torch.set_num_threads(before + 1), lambda: torch.set_num_threads(before)
    )


def _code(function, other):
    before = function.__code__
    return _done(
        lambda: setattr(function, "__code__", other.__code__),
        lambda: setattr(function, "__code__", before),
    )


def _umask():
    before = os.umask(0o022)
    os.umask(before)
    return _done(lambda: os.umask(before ^ 0o007), lambda: os.umask(before))


def _denormals():
    return _done(
        lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)
    )


@contextlib.contextmanager
def _operator():
    library = registry.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("mean.dim", lambda *_, **__: None, "CPU")
    try:
        yield
    finally:
        library._destroy()


@contextlib.contextmanager
def _others_cores():
    """Of a thread that was there before."""
    cores, sleeper = os.sched_getaffinity(0), _sleepers[-1].native_id
    os.sched_setaffinity(sleeper, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(sleeper, cores)


def _mkl():
    """The number of this thread's threads, of MKL's alone."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    return _done(
        lambda: library.MKL_Set_Num_Threads_Local(7),
        lambda: library.MKL_Set_Num_Threads_Local(0),
    )


def _everything_is_right(returned, inputs, expected, where):
    return check.Accuracy(0.0, 0.0)


QUICK = {
    "garbage collection": lambda: _done(gc.disable, gc.enable),
    "whether gradients": lambda: torch.no_grad(),
    "inference mode": lambda: torch.inference_mode(),
    "default dtype": lambda: _done(
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "function modes": lambda: torch.device("meta"),
    "dispatch modes": lambda: check.Poison(),
    "number of torch's threads": _threads,
    "precision of torch's": lambda: _done(
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "deterministic": lambda: _done(
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "autocast": lambda: torch.autocast("cpu"),
    "denormal": _denormals,
    "thresholds": lambda: _done(
        lambda: gc.set_threshold(5), lambda: gc.set_threshold(*before_threshold)
    ),
    "profile function": lambda: _done(
        lambda: sys.setprofile(lambda *_: None), lambda: sys.setprofile(None)
    ),
    "switch interval": lambda: _done(
        lambda: sys.setswitchinterval(1), lambda: sys.setswitchinterval(0.005)
    ),
    "dispatch keys": lambda: _done(
        lambda: torch._C._dispatch_tls_set_dispatch_key_included("Functionalize", True),
        lambda: torch._C._dispatch_tls_set_dispatch_key_included(
            "Functionalize", False
        ),
    ),
    "cores": _only_one_core,
    "timers": lambda: _done(
        lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 1000),
        lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 0),
    ),
}
FULL = {
    "a thread's cores": _others_cores,
    "finders of modules": lambda: _done(
        lambda: sys.meta_path.insert(0, object()), lambda: sys.meta_path.pop(0)
    ),
    "kernels behind torch's operators": _operator,
    "threads of OpenMP and MKL": _mkl,
    "signal handlers": _handler,
    "blocked signals": lambda: _done(
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}),
        lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2}),
    ),
    "resource limits": _limit,
    "collector's callbacks": lambda: _done(
        lambda: gc.callbacks.append(print), lambda: gc.callbacks.remove(print)
    ),
    "warnings that are errors": lambda: _done(
        lambda: warnings.filters.insert(0, ("error", None, Warning, None, 0)),
        lambda: warnings.filters.pop(0),
    ),
    "environment variables": lambda: _done(
        lambda: os.environ.update(SOME_THREADS="1"),
        lambda: os.environ.pop("SOME_THREADS"),
    ),
    "working directory": lambda: _done(
        lambda: os.chdir("/"), lambda: os.chdir(before_folder)
    ),
    "umask": _umask,
    "path of imports": lambda: _done(
        lambda: sys.path.insert(0, "/"), lambda: sys.path.pop(0)
    ),
    "recursion limit": lambda: _done(
        lambda: sys.setrecursionlimit(999), lambda: sys.setrecursionlimit(before_depth)
    ),
    "tuning and dispatch files": _tuning_file,
    "thread of its own running (helper)": _thread_at_work,
    "child process": _child,
    "time.perf_counter": lambda: _attribute(time, "perf_counter", time.monotonic),
    "torch.equal": lambda: _attribute(torch, "equal", lambda *_: True),
    "torch.Tensor.backward": lambda: _attribute(
        torch.Tensor, "backward", lambda self: self
    ),
    "statistics.median": lambda: _attribute(statistics, "median", min),
    "builtins.all": lambda: _attribute(builtins, "all", lambda _: True),
    "random.SystemRandom": lambda: _attribute(random, "SystemRandom", random.Random),
    "batchline.bench.measure.timing.clocks.Host.sample": lambda: _attribute(
        clocks.Host, "sample", lambda self: 1e-9
    ),
    "batchline.bench.measure.worker.preparing.of_samples": lambda: _attribute(
        preparing, "of_samples", None
    ),
    "batchline.bench.stats.roofline.why_impossible": lambda: _attribute(
        roofline, "why_impossible", lambda *_: None
    ),
    "the code of batchline.bench.measure.checking.check.check_outputs": lambda: _code(
        check.check_outputs, _everything_is_right
    ),
    "bmm.tolerance": lambda: _attribute(bmm, "tolerance", None),
    "bmm.reference": lambda: _attribute(bmm, "reference", None),
    "bmm/torch_bmm.function": lambda: _done(
        lambda: object.__setattr__(bmm.variants["torch_bmm"], "function", torch.matmul),
        lambda: object.__setattr__(
            bmm.variants["torch_bmm"], "function", before_function
        ),
    ),
    "content of": lambda: _done(
        lambda: clocks._BY_NAME.update(host=clocks.HostCold),
        lambda: clocks._BY_NAME.update(host=clocks.Host),
    ),
}
_sleepers: list[threading.Thread] = []  # one that is there before the fence
before_threshold, before_folder, before_depth = (
    gc.get_threshold(),
    os.getcwd(),
    sys.getrecursionlimit(),
)
before_function = bmm.variants["torch_bmm"].function


@pytest.fixture(scope="module")
def fence():
    done = threading.Event()
    sleeper = threading.Thread(target=done.wait, daemon=True)
    sleeper.start()
    _sleepers.append(sleeper)
    made = Fence()
    made.keep_ops()
    made.keep(bmm.variants["torch_bmm"])
    yield made
    done.set()
    sleeper.join()


@pytest.fixture
def unchanged(fence):
    """The fence itself finds nothing before and after."""
    fence.look("before")
    yield
    fence.look("after")


@pytest.mark.parametrize(
    "words",
    [
        words
        for words in QUICK
        if words != "denormal" or torch.set_flush_denormal(False)
    ],
)
def test_a_glance_finds(words, fence, unchanged):
    with QUICK[words](), pytest.raises(Tampered) as tampered:
        fence.glance("it")
    assert tampered.value.whose == "it" and words in tampered.value.reason


@pytest.mark.parametrize(
    "words",
    [
        words
        for words in FULL
        if words != "threads of OpenMP and MKL" or torch.backends.mkl.is_available()
    ],
)
def test_a_look_finds(words, fence, unchanged):
    with FULL[words](), pytest.raises(Tampered) as tampered:
        fence.look("it")
    assert tampered.value.whose == "it" and words in tampered.value.reason


def test_modules_threads_that_sleep_and_caches_that_grow_are_no_tampering(fence):
    import colorsys  # noqa: F401 (whatever nobody has imported yet)

    torch.bmm(torch.ones(64, 64, 64), torch.ones(64, 64, 64))
    bmm.dispatch._known["never", "asked"] = torch.bmm
    try:
        fence.look("it")
    finally:
        del bmm.dispatch._known["never", "asked"]


@pytest.mark.parametrize(
    "slow_start", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_every_variant_that_runs_here_leaves_everything_as_it_was(fence, slow_start):
    """What torch.compile makes takes many seconds: `make test` has one of it, in
    test_a_compiled_variant_leaves_everything_as_it_was.
    """
    for op in kernels.ops.values():
        for variant in op.variants.values():
            if variant.slow_start is not slow_start:
                continue
            inputs = op.make_inputs(*variant.example, "float32", "meta")
            if (
                variant.why_not_here("cpu") is None
                and variant.why_unsupported(*inputs) is None
            ):
                probe = next(iter(op.probes.values()))(torch.float32, "cpu", 0)
                if variant.why_unsupported(*probe) is None:
                    variant(*probe)
                fence.look(variant.id)


@pytest.mark.slow
@pytest.mark.commands
def test_a_compiled_variant_leaves_everything_as_it_was(fence):
    variant = kernels.ops["grad_stats"].variants["torch_compiled"]
    variant(*variant.op.probes["ragged"](torch.float32, "cpu", 0))
    fence.look(variant.id)


def test_what_is_called_at_exit_is_found():
    fence = Fence()
    atexit.register(_umask)  # it stays counted
    with pytest.raises(Tampered, match="called at exit"):
        fence.look("it")
    atexit.unregister(_umask)
