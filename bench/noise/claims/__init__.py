"""The four claims of the article on batch size that the project grew from, each judged
on what was measured here.

Pure: it reads the record of a training sweep and the noise part of a run, and needs no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchline.bench.noise.claims import speed, stability
from batchline.bench.noise.claims.verdict import Verdict


def judge(sweep: Mapping | None, noise: Mapping | None) -> list[Verdict]:
    """The verdicts on speed, stability, memory and direction; what was not measured is
    NOT DECIDED and says so.

    Args:
        sweep: what bench.noise.experiments.sweep.run returns.
        noise: {"workloads": {name: {"points": [{"updates", "estimate", "cosines":
            [{"batch", "cosines"}]}], "steps": [{"batch", "samples_s", "peak_bytes"}],
            "limit_bytes"}}}.
    """
    return [
        speed.judge(sweep, noise),
        stability.judge(sweep),
        speed.judge_memory(noise),
        speed.judge_direction(noise),
    ]
