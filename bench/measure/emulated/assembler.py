"""What the assembler says of a kernel's wgmma: that it runs one after another (C7514), or
that a wait was put in (C7517). The PTX that is executed does not show either.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile

from batchline.kernels import architectures

_REMARK = re.compile(
    r"\((C7514|C7517)\)\s*(?:Potential Performance Loss:\s*)?(.*?)\s*in function"
)
_LINE = re.compile(r"\s*in around line (\d+)( by compiler)?")


@functools.lru_cache(maxsize=512)
def remarks(ptx: str, architecture: int) -> tuple[tuple[str, int | None], ...]:
    """Each remark, as (its text, the line of the PTX or None); none of a text without
    wgmma, or where there is no assembler.

    Source: what Triton's ptxas prints with -v.
    """
    ptxas = _ptxas() if "wgmma.mma_async" in ptx else None
    if ptxas is None:
        return ()
    target = architectures.known(architecture)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        options = ("-v", f"--gpu-name=sm_{target.number}{target.suffix}")
        done = subprocess.run(
            [ptxas, *options, file.name, "-o", "/dev/null"],
            capture_output=True,
            text=True,
        )
    found = [_remark(*one) for one in _REMARK.findall(done.stderr)]
    return tuple(dict.fromkeys(found))


def _remark(code: str, text: str) -> tuple[str, int | None]:
    line = _LINE.search(text)
    return f"{code}: {_LINE.sub('', text)}", int(line[1]) if line else None


def _ptxas() -> str | None:
    """The one that Triton brings, or None."""
    try:
        from triton import knobs

        return knobs.nvidia.ptxas.path
    except (ImportError, AttributeError, RuntimeError):
        return None
