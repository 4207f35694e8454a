"""A worker process, which does what it is asked on its device, one thing after another,
until its parent goes away; and the process that workers are forked from (Mould).

Everything that runs a variant's code runs in a worker, so that a crash, a hang or a
killed process costs the parent nothing but a new worker. Before each step it writes
down whose step it is, in memory that the parent can read afterwards.

The mould has imported what workers need, and never runs a variant. A fork of it takes a
tenth of the time that a new interpreter takes to import torch and the compilers. It
stands between the run and the worker: it passes on what the worker prints (line by
line, cleaned, not without end), tells how the worker ended, and adopts and kills
whatever a variant leaves behind (threads end with their process; child processes and
daemons do not: they are looked up in Linux's /proc, and killed with whatever they start
meanwhile).

What makes a fork sound here: the mould has one thread of its own, never touches the
GPU, and never calls into the thread pools of torch and Numba; OpenBLAS, whose pool
starts with its import, stops it for the time of a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

from batchline import own_ops
from batchline.bench import texts
from batchline.bench.measure.doing import Doing
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.machine.state import short_spins
from batchline.bench.measure.reading import reading_process
from batchline.bench.measure.worker import task
from batchline.bench.measure.worker.task import DeviceLost

STARTING = "starting"  # the step of a worker that has not been asked anything yet
IDLE = "idle"
MOST_BYTES = 2**16  # of one worker
_LONGEST_LINE = 2000
_TOO_MUCH = f"\n(it printed more than {MOST_BYTES // 1024} KiB: the rest is left out)\n".encode()
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_LOOK_AGAIN_S = 2e-3
_FORK, _END = "fork", "end"  # what the parent asks
_ENDED, _GONE = (
    "ended",
    "gone",
)  # what it is told: the worker's exit code; that nothing of it is left
_END_S = 10  # to kill what there is below it; a GPU's driver takes its time
_MARK = "BATCHLINE_MOULD"
_CHUNK_BYTES = 2**16
_LAST_CHUNKS = (
    16  # of what a worker has printed, when it has ended: more than a pipe holds
)


def serve(connection, doing: Doing, device: str, tree: str | None = None) -> None:
    """Answer requests (number, method, arguments) of the parent
    (bench.measure.worker.task), until it ends.

    A lost device and a process that a variant has changed are answered, too, and end
    this process. "idle" is asked to hear whether it is there and at nothing else.
    `tree`: the folder whose `kernels` must be those that it measures.
    """
    be_a_good_child()
    doing.begin("", STARTING)
    runner, refusal = _runner(device, doing, tree)
    while True:
        try:
            number, method, arguments = connection.recv()
        except EOFError:
            return
        began_s = time.perf_counter()
        if method != IDLE:
            doing.begin("", method)
        kind, content = (
            (task.RAISED, refusal) if refusal else _carry_out(runner, method, arguments)
        )
        answer = task.Answer(kind, content, began_s, time.perf_counter())
        try:
            line = task.encoded(number, answer)
        except (
            TypeError,
            ValueError,
            RecursionError,
        ) as error:  # ours: it answers with what can't be sent
            kind, content = task.RAISED, texts.error_line(error)
            line = task.encoded(
                number, dataclasses.replace(answer, kind=kind, content=content)
            )
        _send(connection.fileno(), line)
        if kind in (task.LOST, task.TAMPERED):
            return


def _runner(device: str, doing: Doing, tree: str | None) -> tuple[object, str | None]:
    """The Runner that does what is asked, or why there is none."""
    try:
        from batchline.bench.measure.worker.runner import Runner

        _require_kernels_of(tree)
        return Runner(device, doing.begin), None
    except Exception as error:  # the answer to whatever is asked
        return None, texts.error_line(error)


def _require_kernels_of(tree: str | None) -> None:
    """Raise ImportError if the kernels are not the tree's: another revision must not be
    compared with itself.
    """
    if not tree:
        return
    from batchline import kernels

    own = own_ops.folders() if own_ops.repository() else [Path(kernels.__file__).parent]
    folders, root = [*map(os.path.realpath, own)], os.path.realpath(tree)
    if not all(Path(folder).is_relative_to(root) for folder in folders):
        raise ImportError(
            f"the kernels of {tree} were asked for, and those of "
            f"{', '.join(folders)} were imported"
        )


def _carry_out(runner, method: str, arguments: tuple) -> tuple[str, object]:
    """What becomes of one request: the kind of the answer, and its content."""
    if method == IDLE:
        return task.DONE, None
    try:
        return task.DONE, getattr(runner, method)(*arguments)
    except Tampered as tampered:
        return task.TAMPERED, (tampered.whose, tampered.reason)
    except DeviceLost as error:
        return task.LOST, str(error)
    except Exception as error:  # ours, not a variant's: the parent must hear of it
        print(texts.clean(traceback.format_exc()), file=sys.stderr)
        return task.RAISED, texts.error_line(error)


def _send(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def be_a_good_child() -> None:
    """Leave Ctrl-C to the parent; if memory runs out for all, let the kernel take this
    process and not the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


class Printed:
    """Takes the bytes that a worker writes and gives back the lines that may be shown."""

    def __init__(self):
        self._left = MOST_BYTES
        self._line = b""

    def show(self, chunk: bytes) -> str:
        """The lines that `chunk` completes, each ended by a line feed; "" once the
        worker has printed too much.
        """
        if self._left <= 0:
            return ""
        room = self._left
        self._left -= len(chunk)
        if self._left <= 0:
            chunk = chunk[:room] + _TOO_MUCH
        *lines, self._line = (self._line + chunk).split(b"\n")
        if len(self._line) > _LONGEST_LINE:
            lines.append(self._line)
            self._line = b""
        return "".join(map(_printable, lines))

    def rest(self) -> str:
        """The last line, if it was not ended."""
        line, self._line = self._line, b""
        return _printable(line) if line else ""


def _printable(line: bytes) -> str:
    return texts.clean(line.decode(errors="replace"), _LONGEST_LINE) + "\n"


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends. Linux
    only.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Be killed when the parent ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants(pid: int) -> set[int]:
    """The process ids of all processes below `pid`; none where /proc is not Linux's."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    below: set[int] = set()
    waiting = [pid]
    while waiting:
        new = [child for child in children.get(waiting.pop(), ()) if child not in below]
        below.update(new)
        waiting += new
    return below


def marked(mark: str) -> set[int]:
    """The process ids of all processes that were started with the environment variable
    `mark` (NAME=value).
    """
    carriers = set()
    wanted = mark.encode()
    for name in _process_names():
        with contextlib.suppress(OSError):
            if wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                carriers.add(int(name))
    return carriers


def kill_all(
    which: Callable[[], set[int]], reap: Callable[[], None], seconds: float
) -> None:
    """Kill the processes that `which` returns until it returns none, or `seconds` have
    passed.

    `reap` is called after each round: a killed child stays in the list until its parent
    has waited for it.
    """
    until_s = time.monotonic() + seconds
    while left := which():
        for pid in left:
            kill(pid)
        reap()
        if time.monotonic() > until_s:
            return
        time.sleep(_LOOK_AGAIN_S)


def kill(pid: int) -> None:
    """Kill one process, if it is still there and ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _parents() -> dict[int, int]:
    parents = {}
    for name in _process_names():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path("/proc", name, "stat").read_text(errors="replace")
            state, parent = stat.rpartition(")")[2].split()[
                :2
            ]  # the name before it may hold spaces and brackets
            parents[int(name)] = int(parent)
    return parents


def _process_names() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(option, value)


class Mould:
    """The parent's side: starts the mould, and has workers forked, one at a time.

    `serve(connection, *arguments)` is what a worker does; `preloaded` are names of
    modules that all workers import, none of which may import a variant. `tree`: the
    folder whose `kernels` they import.
    """

    def __init__(
        self,
        context,
        serve: Callable,
        arguments: tuple,
        preloaded: Sequence[str],
        tree: str | None,
    ):
        self._context = context
        self._mark = secrets.token_hex(8)
        self._control, theirs = context.Pipe()
        self._process = context.Process(
            target=_run, args=(theirs, serve, arguments, preloaded, tree), daemon=True
        )
        resource_tracker.ensure_running()  # multiprocessing's own process, which must not carry the mark
        variables = {_MARK: self._mark, **short_spins(os.environ)}
        if tree:
            variables |= own_ops.environment_in(tree)
        with _environment(variables):
            self._process.start()
        theirs.close()

    @property
    def signs(self) -> list:
        """What `multiprocessing.connection.wait` can wait for: one is ready when the
        worker has ended.
        """
        return [self._control, self._process.sentinel]

    def fork(self) -> Connection:
        """Have a worker forked; returns the parent's end of its connection."""
        ours, theirs = self._context.Pipe()
        with theirs, contextlib.suppress(
            OSError
        ):  # a mould that has just died is seen by its signs
            self._control.send(_FORK)
            reduction.send_handle(self._control, theirs.fileno(), self._process.pid)
        return ours

    def exit_code(self) -> int | None:
        """How the worker ended: its exit code, or minus the signal's number; None where
        the mould itself is gone.
        """
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, code = self._control.recv()
                if kind == _ENDED:
                    return code
        return None

    def end_worker(self) -> bool:
        """End the worker and all that it has left behind; False where the mould does
        not answer, and must be closed.
        """
        self._wake()
        with contextlib.suppress(EOFError, OSError):
            self._control.send(_END)
            while self._control.poll(_END_S + 1):
                if self._control.recv()[0] == _GONE:
                    return True
        return False

    def close(self) -> None:
        """End the mould and everything below it."""
        self._wake()
        self._control.close()  # it ends them when it sees that
        self._process.join(_END_S + 1)
        if self._process.exitcode != 0:  # it was stopped or killed
            self._end_by_force()
        self._process.close()

    def _wake(self) -> None:
        """Let the mould go on, if a variant has stopped it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGCONT)

    def _end_by_force(self) -> None:
        below = descendants(self._process.pid) if self._process.is_alive() else set()
        self._process.kill()
        self._process.join()
        mark = f"{_MARK}={self._mark}"
        for pid in below:
            kill(pid)
        kill_all(lambda: marked(mark), lambda: None, _END_S)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """More variables in the environment of the processes that are started in the block."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def _run(
    control: Connection,
    serve: Callable,
    arguments: tuple,
    preloaded: Sequence[str],
    tree: str | None,
) -> None:
    """The mould's life: forks a worker when it is asked to, until its parent goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(OSError):
        os.setsid()  # nor does the terminal's reach what is below
    adopt_orphans()
    if tree and not own_ops.repository():
        reading_process.use_kernels_of(tree)
    for name in preloaded:
        with contextlib.suppress(
            Exception
        ):  # the worker fails at it again, and says so
            importlib.import_module(name)
    keeper = _Keeper(control, serve, arguments)
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit()
    )  # as the parent's interpreter ends its children
    try:
        keeper.work()
    except (EOFError, OSError, SystemExit):
        keeper.end_worker()
        os._exit(0)  # taking the interpreter down with torch in it takes a second


class _Keeper:
    """The mould's side of one worker after another."""

    def __init__(self, control: Connection, serve: Callable, arguments: tuple):
        self._control, self._serve, self._arguments = control, serve, arguments
        self._worker: int | None = None
        self._output: int | None = None
        self._printed = Printed()
        self._wake, theirs = os.pipe()
        for end in (self._wake, theirs):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        signal.signal(
            signal.SIGCHLD, lambda number, frame: None
        )  # without a handler, nothing is written to the pipe

    def work(self) -> None:
        """Do what the parent asks; raises EOFError when it has gone away."""
        while True:
            ready = wait(
                [
                    self._control,
                    self._wake,
                    *([] if self._output is None else [self._output]),
                ]
            )
            if self._output in ready:
                self._pass_on()
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, _CHUNK_BYTES)
                self._reap()
            if self._control in ready:
                self._carry_out(self._control.recv())

    def end_worker(self) -> None:
        """Kill all that is below this process, and show the last that it printed."""
        if self._worker is not None:
            kill(self._worker)
        own = os.getpid()
        kill_all(lambda: descendants(own), self._reap, _END_S)
        self._close_output()

    def _carry_out(self, request: str) -> None:
        if request == _FORK:
            self._fork(reduction.recv_handle(self._control))
        else:
            self.end_worker()
            self._control.send((_GONE, None))

    def _fork(self, handle: int) -> None:
        self._output, theirs = os.pipe()
        os.set_blocking(self._output, False)
        self._printed = Printed()
        sys.stderr.flush()
        worker = os.fork()
        if worker == 0:
            code = 1
            try:
                self._control.close()
                _become_worker(handle, theirs)
                self._serve(Connection(handle), *self._arguments)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(
                    code
                )  # whatever a variant has registered to be run at the exit is not
        self._worker = worker
        os.close(handle)
        os.close(theirs)

    def _reap(self) -> None:
        """Wait for every child that has ended, adopted ones too; tell the parent of the
        worker.
        """
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._worker:
                    self._worker = None
                    self._pass_on(_LAST_CHUNKS)
                    with contextlib.suppress(OSError):  # the parent may be gone
                        self._control.send((_ENDED, os.waitstatus_to_exitcode(status)))

    def _pass_on(self, chunks: int = 1) -> None:
        """Show what the worker has printed since, as far as it may be shown; so many
        chunks, for it may never stop.
        """
        with contextlib.suppress(BlockingIOError):
            while self._output is not None and chunks:
                chunks -= 1
                chunk = os.read(self._output, _CHUNK_BYTES)
                self._show(self._printed.show(chunk))
                if not chunk:
                    self._close_output()

    def _close_output(self) -> None:
        if self._output is not None:
            self._show(self._printed.rest())
            os.close(self._output)
            self._output = None

    def _show(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            sys.stderr.write(text)
            sys.stderr.flush()


def _become_worker(handle: int, output: int) -> None:
    """From the mould's fork to a process as a fresh one is: what it prints goes to
    `output`; nothing else is open.
    """
    end_with_parent()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, handle)
    os.closerange(handle + 1, os.sysconf("SC_OPEN_MAX"))
