"""Where Batchline's own files lie, and where it keeps what it measures.

In a checkout kernels/ and bench/ lie beside this folder, and reports/ too. In a wheel
they lie below it, and reports/ is that of the folder in which a command is run.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent

IS_CHECKOUT = not (_HERE / "kernels").is_dir()
IMPORT_ROOT = _HERE.parent  # where `import batchline` finds it
CODE = IMPORT_ROOT if IS_CHECKOUT else _HERE  # has kernels/ and bench/
REPORTS = CODE / "reports" if IS_CHECKOUT else Path("reports")
BASELINES = REPORTS / "baselines"
EVIDENCE = REPORTS / "evidence"
