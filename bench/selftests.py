"""What `batchline selftest` found, as it is stored in selftest.json. Imports nothing that
measures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from batchline.bench import sealed
from batchline.bench.files import write_whole
from batchline.bench.regressions import IMPROVED, REGRESSED

FILE_NAME = "selftest.json"
FORMAT = 1
NOTHING = 0.0  # the share that is planted in an A/A


@dataclass(frozen=True)
class Finding:
    """What one session said of one case of which head took `share` more: the verdict,
    the change and its pairs.

    `effect` is a share, None where the case could not be judged; `base_s` the base's
    median in seconds.
    """

    session: int
    case: str
    share: float
    verdict: str
    effect: float | None
    pairs: int
    base_s: float | None

    @property
    def alarm(self) -> bool:
        """Whether a change was found that there is not."""
        return (
            self.verdict == IMPROVED
            or self.verdict == REGRESSED
            and self.share == NOTHING
        )

    @property
    def seen(self) -> bool:
        return self.verdict == REGRESSED


@dataclass(frozen=True)
class Selftest:
    """A whole self-test. `about`: machine, profile, selection, started, seconds,
    shares, ended ("" or why early).
    """

    about: Mapping
    findings: tuple[Finding, ...]

    def of(self, case: str, share: float) -> list[Finding]:
        return [one for one in self.findings if one.case == case and one.share == share]

    @property
    def cases(self) -> list[str]:
        """The shortest first."""
        times = {one.case: one.base_s or 0.0 for one in self.findings}
        return sorted(times, key=times.__getitem__)

    @property
    def sessions(self) -> int:
        return len({one.session for one in self.findings})


def save(folder: Path, found: Selftest) -> Path:
    """Write `folder`/selftest.json."""
    parts = {
        "about": dict(found.about),
        "findings": [asdict(one) for one in found.findings],
    }
    text = (
        json.dumps(
            {"format": FORMAT, "digest": sealed.digest(*parts.values()), **parts}
        )
        + "\n"
    )
    return write_whole(folder / FILE_NAME, text)


def load(folder: Path) -> Selftest:
    """The self-test stored in `folder`.

    Raises:
        ValueError: if there is none, or it can't be believed.
    """
    document = sealed.load(
        folder / FILE_NAME,
        FORMAT,
        "`make selftest OUT=` writes it",
        ("about", "findings"),
    )
    if document is None:
        raise ValueError(f"no self-test in {folder}")
    return Selftest(
        document["about"], tuple(Finding(**row) for row in document["findings"])
    )
