"""Kernels that look fast and are wrong, or that would take a run with them, one usual way in each file.

A file gives `OP`, `REFUSED_FOR` (words that the refusal must contain) and a function named like the file. DECLARES is
what it declares as a variant, and NEEDS_DEPTH the K from which it is wrong, where that is large. Those that give a
`STATUS` are caught by isolation or by the floor, in a worker process; those with REFUSED_BY = "timing" by the looks at
what was timed, in a whole measurement. Those with UNRANKED_FOR are right as far as they can be checked, and must not
win, for that reason; those with KEEPS_BYTES are right, and their memory must count. The checker must refuse all the
others. Importing a file does nothing.
"""

import importlib

_OTHERS = ("STATUS", "UNRANKED_FOR", "KEEPS_BYTES")


def refused_by_the_checker(name: str) -> bool:
    """Whether `bench.measure.checking.check.check_variant` alone must refuse the kernel of that file."""
    module = importlib.import_module(f"{__name__}.{name}")
    return (
        not any(hasattr(module, other) for other in _OTHERS)
        and getattr(module, "REFUSED_BY", "check") == "check"
    )
