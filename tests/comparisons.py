"""Comparisons of two revisions, and runs, as what shows them gets them; with text that
means to be more than text.
"""

from batchline.bench import statuses
from batchline.bench.statuses import FAILED, HUNG, NOT_REACHED, UNSUPPORTED, WRONG
from batchline.bench.store.records import Run
from batchline.bench.store.regressions import (
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    LATENCY,
    MISSING,
    NEW,
    REGRESSED,
    UNCONFIRMED,
    Judged,
    OverBatches,
    Regression,
)
from batchline.bench.store.run_json import parse
from tests.test_records import document

HOSTILE = (
    "<script>alert(\"1\")</script> 'q' & | `c` **b** [l](http://x) @all #1 $x$ ~~s~~ \\"
    "\n::error::pwned\r\n::add-mask::x ##[error]y %0A \x1b[31m\x00\x85\ud800\u202e tail"
)
ABOUT = {
    "base": {"name": "main", "commit": "a" * 40, "dirty": False},
    "head": {"name": "", "commit": "b" * 40, "dirty": True},
    "profile": "quick",
    "selection": "",
    "device": "cuda",
    "clock": "device_hot",
    "started": "2026-01-02T03:04:05+00:00",
    "seconds": 83.2,
    "pairs": 10,
    "budget_s": None,
    "ended": "",
    "machine": {"device_name": "Some GPU"},
}


def judged(verdict, batch=1, quantity=LATENCY, **changes):
    """One case of bmm/tiled with a verdict and what usually comes with it."""
    known = {
        REGRESSED: {
            "base": 2e-5,
            "head": 2.2e-5,
            "effect": 0.1,
            "low": 0.09,
            "high": 0.11,
        },
        IMPROVED: {
            "base": 2e-5,
            "head": 1.8e-5,
            "effect": -0.1,
            "low": -0.11,
            "high": -0.09,
        },
        EQUIVALENT: {
            "base": 2e-5,
            "head": 2e-5,
            "effect": 0.0004,
            "low": -0.001,
            "high": 0.002,
        },
        INCONCLUSIVE: {
            "base": 2e-5,
            "head": 2.1e-5,
            "effect": 0.04,
            "low": -0.01,
            "high": 0.09,
            "least_detectable": 0.08,
            "pairs_needed": 24,
        },
        UNCONFIRMED: {
            "base": 2e-5,
            "head": 4.1e-5,
            "effect": 1.05,
            "low": 0.981,
            "high": 1.13,
            "pairs_needed": 6,
        },
        INVALID: {"reason": "throttled on both sides"},
        IDENTICAL: {},
        NEW: {"reason": "only at head", "head": 2e-5},
        MISSING: {"reason": "only at base", "base": 2e-5},
    }[verdict]
    if "effect" in known:
        known |= {"floor": 0.015, "floor_from": "A/A", "pairs": 10}
    return Judged(
        f"bmm/tiled/tiny_16/float16/B{batch}", quantity, verdict, **(known | changes)
    )


def over_batches(
    verdict=REGRESSED, words="slower for B ≤ 16 (+7.2%), equal above", variant="tiled"
):
    return OverBatches("bmm", variant, "tiny_16", "float16", LATENCY, verdict, words)


def comparison(*cases, kernels=(), void=None, **about):
    return Regression(ABOUT | about, void, cases, tuple(kernels), {})


def hostile_comparison():
    """Every text that a stranger's revision has a say in is HOSTILE."""
    name = f"bmm/{HOSTILE.replace('/', ' ')}/tiny_16/float16/B1"
    return comparison(
        *(
            Judged(
                name,
                LATENCY,
                verdict,
                HOSTILE,
                2e-5,
                3e-5,
                0.5,
                0.4,
                0.6,
                0.01,
                HOSTILE,
                10,
            )
            for verdict in (REGRESSED, INVALID, INCONCLUSIVE, EQUIVALENT, NEW)
        ),
        kernels=[over_batches(words=HOSTILE, variant=HOSTILE)],
        ended=HOSTILE,
        head={"name": HOSTILE, "commit": "b" * 40, "dirty": False},
        machine={"device_name": HOSTILE},
    )


def run(*outcomes, audit=(), partial=False) -> Run:
    """The stored run of tests.test_records, with a case more for each (variant, batch,
    status, reason).
    """
    stored = document()
    stored["batchline"] |= {"audit": list(audit), "partial": partial}
    stored["batchline"]["cases"] += [
        {
            "id": f"bmm/{variant}/tiny_16/float32/B{batch}",
            "status": status,
            "reason": reason,
        }
        for variant, batch, status, reason in outcomes
    ]
    return parse(stored)


BROKEN_CASES = (
    ("late", 4, NOT_REACHED, "the run ended before it"),
    ("slow", 4, HUNG, "not done after 20 s"),
    ("bad", 4, FAILED, "ValueError: B"),
    ("bad", 8, FAILED, "ValueError: B"),
    ("off", 4, WRONG, "on ragged: no"),
    ("shy", 4, UNSUPPORTED, "float16 only"),
)
BUSY_CASE = (
    "fast",
    4,
    statuses.INVALID,
    "the machine was busy: other processes took 43% of the cores, three times",
)
IMPOSSIBLE = {
    "op": "grad_stats",
    "variant": "rounded",
    "dtype": "bfloat16",
    "whose": "ours",
    "impossible": True,
    "condition": "large_mean",
    "failed": "n is negative in 7 of 16",
}
