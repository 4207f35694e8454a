"""A worker whose variants do to their process what their names say, in the step that
their label names (name@step).

It speaks with its parent as the real one does; only its Runner is another.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import signal
import stat
import sys
import threading
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace

from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker import isolation, worker
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import DeviceLost, Outcome, Task
from batchline.bench.statuses import MEASURED

EFFORT = Effort(0.1, 0.01)
DEADLINE_S = 2.0  # of steps of 20 ms, and of one of 1 s
HANGS_S = 60  # what hangs, if nobody ends it


def serve(connection, doing, device, tree):
    """What bench.measure.worker.worker.serve does, by a FakeRunner. `device` is a folder for
    the variants to write into.
    """
    sys.modules["batchline.bench.measure.worker.runner"] = SimpleNamespace(
        Runner=FakeRunner
    )
    worker.serve(connection, doing, device, tree)


def isolated(monkeypatch, folder="", deadline_s=DEADLINE_S):
    """An Isolation of such workers."""
    monkeypatch.setattr(isolation, "serve", serve)
    monkeypatch.setattr(isolation, "_START_S", 20)
    monkeypatch.setattr(isolation, "_PRELOADED", ())
    return Isolation(str(folder), deadline_s)


def task(*entries, dtype="float32"):
    return Task(
        "bmm",
        "tiny_16",
        dtype,
        1,
        tuple((entry, entry.partition("@")[0]) for entry in entries),
        ("host",),
        EFFORT,
        EFFORT,
        0.0,
    )


class FakeRunner:
    """Measures every entry in 20 ms, after its variant has done what it does."""

    def __init__(self, folder, begin):
        self._folder, self._begin = folder, begin
        self.changed = self.tampered = False  # by a variant, in this process

    def measure(self, the_task):
        outcomes = {}
        for label, variant in the_task.entries:
            self._begin(label, label.partition("@")[2] or "warm-up")
            outcomes[label] = getattr(self, variant)(the_task) or Outcome(
                MEASURED, "", (1e-3, 2e-3), 2, {"seen": 1}
            )
            time.sleep(0.02)
        if self.tampered:
            raise Tampered(None, "somebody has set a rlimit")
        return outcomes

    def room(self):
        return 1

    def good(self, the_task):
        pass

    first = last = other = good

    def hangs(self, the_task):
        time.sleep(HANGS_S)

    def stops_itself(self, the_task):
        os.kill(os.getpid(), signal.SIGSTOP)

    def segfaults(self, the_task):
        os.kill(os.getpid(), signal.SIGSEGV)

    def killed(self, the_task):
        os.kill(os.getpid(), signal.SIGKILL)

    def exits(self, the_task):
        os._exit(7)

    def exits_clean(self, the_task):
        os._exit(0)

    def loses_device(self, the_task):
        raise DeviceLost("RuntimeError: illegal access")

    def closes_everything(self, the_task):
        os.closerange(0, 1000)

    def raises_60_mb(self, the_task):
        raise RuntimeError("::error::" + "x" * 60_000_000)

    def gives_60_mb(self, the_task):
        return Outcome(MEASURED, "x" * 60_000_000, (1e-3,))

    def tampers(self, the_task):
        raise Tampered("tampers", "it has set a rlimit")

    def accuses_first(self, the_task):
        raise Tampered("first", "it has set a rlimit")

    def tampers_unseen(self, the_task):
        self.tampered = True

    def breaks_the_next(self, the_task):
        self.changed = True

    def breaks_if_changed(self, the_task):
        if self.changed:
            os.kill(os.getpid(), signal.SIGSEGV)

    def leaves_a_thread_that_crashes(self, the_task):
        threading.Thread(
            target=lambda: (time.sleep(0.1), os.kill(os.getpid(), signal.SIGSEGV)),
            daemon=True,
        ).start()

    def takes_its_time(self, the_task):
        time.sleep(0.3)

    def fails_in_company(self, the_task):
        if len(the_task.entries) > 1:
            raise KeyError("x")

    def fails(self, the_task):
        raise KeyError("x")

    def takes_no_time(self, the_task):
        return Outcome(MEASURED, "", (1e9,), 1)

    def writes_garbage(self, the_task):
        for name in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(name).st_mode):
                    os.write(name, b"\x80\x04garbage\n")

    def begins_a_message(self, the_task):
        for connection in _connections():
            os.write(connection.fileno(), b"\x00\x00\x10\x00")
        time.sleep(HANGS_S)

    def sends_without_end(self, the_task):
        for connection in _connections():
            while True:
                os.write(connection.fileno(), b"x" * 2**16)

    def forges_an_answer(self, the_task):
        for connection in _connections():
            os.write(connection.fileno(), _forged(the_task, "no such number"))

    def forges_with_the_number(self, the_task):
        for connection in _connections():
            os.write(connection.fileno(), _forged(the_task, _number()))

    def forges_and_exits(self, the_task):
        self.forges_with_the_number(the_task)
        os._exit(0)

    def slows_its_clock(self, the_task):
        clock, now_s = time.perf_counter, time.perf_counter()
        time.perf_counter = lambda: now_s + (clock() - now_s) / 100
        time.sleep(1)

    def edits_at_exit(self, the_task):
        atexit.register(self._edit)

    def leaves_a_daemon(self, the_task):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1)
                self._edit()
            os._exit(0)
        os.wait()

    def leaves_a_daemon_and_kills_its_parent(self, the_task):
        self.leaves_a_daemon(the_task)
        os.kill(os.getppid(), signal.SIGKILL)

    def stops_its_parent(self, the_task):
        self.leaves_a_daemon(the_task)
        os.kill(os.getppid(), signal.SIGSTOP)

    def forks_20(self, the_task):
        for _ in range(20):
            if os.fork() == 0:
                ctypes.CDLL("libc.so.6").prctl(
                    1, 0
                )  # PR_SET_PDEATHSIG: not with its parent
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(1)
                self._edit()
                os._exit(0)

    def prints_commands(self, the_task):
        print(
            "::error::forged\n  ::stop-commands::x\n##[error]forged\n\x1b[2Jgone\nan honest line",
            flush=True,
        )
        os.system("echo ::warning::by a child")

    def prints_60_mb(self, the_task):
        for _ in range(600):
            os.write(2, b"x" * 99_999 + b"\n")

    def _edit(self):
        with open(os.path.join(self._folder, "run.json"), "a") as file:
            file.write("edited")


def _connections():
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, Connection) and not one.closed
    ]


def _number():
    """The number of the request, which a variant finds in the frames below its own."""
    frame = sys._getframe()
    while "number" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["number"]


def _forged(the_task, number):
    outcome = {
        "status": MEASURED,
        "reason": "",
        "samples_s": [1e-9] * 9,
        "iterations": 1,
        "facts": {},
    }
    now_s = time.perf_counter()
    return (
        json.dumps(
            {
                "number": number,
                "kind": "done",
                "content": dict.fromkeys(the_task.labels, outcome),
                "began_s": now_s,
                "ended_s": now_s,
            }
        ).encode()
        + b"\n"
    )
