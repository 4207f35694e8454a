"""Being asked to stop, by Ctrl-C, by a CI that cancels or by a terminal that closes:
each is a KeyboardInterrupt.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

_OF_TERMINAL = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)  # Windows has the first alone
)  # sent to all processes of a terminal's foreground
SIGNALS = (signal.SIGTERM, *_OF_TERMINAL)


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """In the block each of SIGNALS raises KeyboardInterrupt; one that was ignored
    before stays so (nohup).
    """
    heard = [
        number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {
        number: signal.signal(number, signal.default_int_handler) for number in heard
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_at_once() -> None:
    """From now on a signal ends the process with no word: everything is stored, and
    what is left is to exit.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """A signal that comes in the block counts after it, so that what is done in it is
    done whole.
    """
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


@contextlib.contextmanager
def put_off_and_kept_from_children() -> Iterator[None]:
    """As `put_off`; a process that starts in the block never hears what the terminal
    sends: stopping it is ours.
    """
    resource_tracker.ensure_running()  # whose start would take SIGINT from the mask
    with put_off():
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINAL)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
