"""Copies of the sources, for tests that change them and run a command there."""

import importlib
import shutil
from pathlib import Path

from batchline.bench.measure.timing import ceilings

REPOSITORY = Path(__file__).resolve().parents[1]


def copy_sources(root, measures_ceilings=True):
    """kernels/ and bench/ below `root`, which is returned; without the ceilings'
    seconds if they are not wanted.
    """
    for name in ("batchline", "kernels", "bench"):
        shutil.copytree(REPOSITORY / name, root / name)
    if not measures_ceilings:
        path = root / Path(ceilings.__file__).relative_to(REPOSITORY)
        with path.open("a") as file:
            file.write(
                "\n\ndef try_to_measure(*_):\n    return None, 'left out here'\n"
            )
    return root


def drop_in(root, name):
    """Make a file of tests/wrong_kernels a variant of its op in the sources below
    `root`.
    """
    module = importlib.import_module(f"tests.wrong_kernels.{name}")
    declares = "".join(
        f", {field}=DECLARES[{field!r}]" for field in getattr(module, "DECLARES", ())
    )
    text = Path(module.__file__).read_text(encoding="utf-8")
    (root / "kernels" / module.OP.name / f"{name}.py").write_text(
        f'{text}\n\nOP.variant(backend="torch"{declares})({name})\n', encoding="utf-8"
    )
