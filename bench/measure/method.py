"""By which method times are taken: a digest of the clocks and of the sampling, which is
stored with each run, so that runs of two methods are known for it.
"""

from __future__ import annotations

from pathlib import Path

from batchline.bench.measure.reading import sources
from batchline.bench.store.files import digest

_TIMING = Path(__file__).parent / "timing"
_DECIDE_TIMES = ("clocks.py", "sampling.py")
_DIGITS = 12


def harness() -> str:
    """A digest of the code that takes the times, blind to comments, docstrings and
    layout.
    """
    code = [sources.read(_TIMING / name).code for name in _DECIDE_TIMES]
    return digest(*code)[:_DIGITS]
