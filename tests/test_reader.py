"""The process that reads the ops is started ahead of its request: the first who needs
it has it, and none is left.
"""

import os
import subprocess
import sys
import time

import pytest

from batchline.bench import reader


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_first_has_the_one_that_was_started_and_the_next_one_of_its_own():
    with reader.started_ahead():
        (ahead,) = reader._ahead
        with reader.process() as first, reader.process() as second:
            assert first is ahead and second is not ahead
        assert not is_there(first.pid) and not is_there(second.pid)


def test_who_reads_another_tree_does_not_get_it(tmp_path):
    with reader.started_ahead():
        (ahead,) = reader._ahead
        with reader.process(tmp_path) as other:
            assert other is not ahead and other.args[-1] == str(tmp_path)
    assert not is_there(ahead.pid)


def test_it_ends_with_the_block_that_raises():
    with pytest.raises(KeyError), reader.started_ahead():
        (ahead,) = reader._ahead
        raise KeyError
    assert not is_there(ahead.pid) and not reader._ahead


@pytest.mark.commands
def test_it_ends_by_itself_when_nobody_asks():
    """A parent that is killed closes its end of the pipe."""
    program = (
        "import os, signal\n"
        "from batchline.bench import reader\n"
        "with reader.started_ahead():\n"
        "    print(reader._ahead[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60
    )
    until_s = time.monotonic() + 60
    while is_there(int(killed.stdout)) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert not is_there(int(killed.stdout))
