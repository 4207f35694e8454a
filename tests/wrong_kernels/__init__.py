"""Kernels that look fast and are wrong, or that would take a run with them, one usual way in each file.

A file gives `OP`, `REFUSED_FOR` (words that the refusal must contain) and a function named like the file. Those that
give a `STATUS` are caught by isolation or by the floor, in a worker process; those with REFUSED_BY = "timing" by the
looks at what was timed, in a whole measurement. The checker must refuse all the others. Importing a file does nothing.
"""
import importlib


def refused_by_the_checker(name: str) -> bool:
    """Whether `bench.measure.check.check_variant` alone must refuse the kernel of that file."""
    module = importlib.import_module(f"{__name__}.{name}")
    return not hasattr(module, "STATUS") and getattr(module, "REFUSED_BY", "check") == "check"
