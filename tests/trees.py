"""Copies of the sources, for tests that change them and run a command there."""
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def copy_sources(root, measures_ceilings=True):
    """kernels/ and bench/ below `root`, which is returned; without the ceilings' seconds if they are not wanted."""
    for name in ("kernels", "bench"):
        shutil.copytree(REPOSITORY / name, root / name)
    if not measures_ceilings:
        with (root / "bench" / "measure" / "ceilings.py").open("a") as file:
            file.write("\n\ndef try_to_measure(*_):\n    return None, 'left out here'\n")
    return root
