"""Other packages called `kernels` or `bench`, which a checkout's folders must not hide.

With a checkout's root on sys.path, `import kernels` finds the folder kernels/ there.
Whoever writes that means another package, such as Hugging Face's `kernels`: Batchline's
own is `batchline.kernels`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

from batchline import places


def import_namesake(name: str) -> None:
    """Import the top-level module `name` from anywhere but the checkout, in place of
    the module that is being imported.

    Where there is none, it is an empty namespace package, as a folder without code is:
    transformers imports `kernels` whenever a folder is called so, and an error would
    end it.
    """
    spec = _find(name) or ModuleSpec(name, None, is_package=True)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if spec.loader:
        spec.loader.exec_module(module)


def _find(name: str) -> ModuleSpec | None:
    """Its spec, as any finder of this process gives it; a folder without `__init__.py`
    is no module.
    """
    root = places.IMPORT_ROOT
    elsewhere = [
        entry for entry in sys.path if os.path.realpath(entry or ".") != str(root)
    ]
    for finder in sys.meta_path:
        if finder is PathFinder:
            spec = finder.find_spec(name, elsewhere)
        else:
            spec = finder.find_spec(name, None)
        if spec and spec.loader and not _lies_in(spec, str(root / name)):
            return spec
    return None


def _lies_in(spec: ModuleSpec, folder: str) -> bool:
    return os.path.realpath(spec.origin or "").startswith(folder + os.sep)
