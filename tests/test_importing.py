"""The ops' files are imported from their sources, whatever lies in __pycache__, and
nothing watches.
"""

import subprocess
import sys

_PROGRAM = """
import py_compile, sys
from pathlib import Path
from batchline.bench.measure.reading import reading_process

folder = Path(sys.argv[1])
file = folder / "kernel.py"
file.write_text("value = 'poison'")
py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
file.write_text("value = 'source'")
sys.path.insert(0, str(folder))
if sys.argv[2] == "guarded":
    reading_process.from_sources_only([str(folder)])
    reading_process.refuse_audit_hooks()
import kernel
events = []
sys.addaudithook(lambda event, arguments: events.append(event))
import os
os.listdir(folder)
print(kernel.value, "os.listdir" in events)
"""


def _said(folder, how):
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder), how],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_without_a_guard_a_poisoned_cache_is_run_and_a_hook_is_told(tmp_path):
    assert _said(tmp_path, "plain") == ["poison", "True"]


def test_a_cache_is_not_read_and_no_hook_is_added(tmp_path):
    assert _said(tmp_path, "guarded") == ["source", "False"]
