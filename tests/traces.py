"""Simulated sessions of the gate: the logarithms of head over base that pairs of fresh
processes would give.

The model and its figures are those that the gate's rule was chosen by: each process has
its luck, each sample its noise and now and then a spike, and the machine drifts under
both sides of a pair, which take turns in the order A B B A.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

_QUADS = 5  # turns A B B A of a pair, as bench.regress.pairs has them
_POOL = 20_000  # pairs of medians that sessions draw from: what happens inside of a pair is the same for all cases
_HEAD = np.tile([False, True, True, False], _QUADS)


@dataclass(frozen=True)
class Noise:
    """Standard deviations and sizes as shares of the time.

    `process`: luck of a process. `within`: of a sample. `spikes`: the share of samples
    that take up to half as long again. `drift`: a random walk's, over the turns of one
    pair. `trend`: a steady rise over the turns of one pair. `slow`: the probability of
    a process in the slow mode, `mode` slower. `resolution`: of the timer.
    """

    process: float = 0.01
    within: float = 0.02
    spikes: float = 0.02
    drift: float = 0.03
    trend: float = 0.0
    slow: float = 0.0
    mode: float = 0.08
    resolution: float = 0.0


NOTES = Noise()
DOUBLE = Noise(process=0.02, within=0.04)
KINDS = {
    "notes": NOTES,
    "double": DOUBLE,
    "trend": Noise(trend=0.1),
    "spikes": Noise(spikes=0.25),
    "two modes": Noise(slow=0.25),
    "ties": Noise(resolution=0.05),
    "quiet ties": Noise(
        process=0.003, within=0.003, spikes=0.0, drift=0.0, resolution=0.03
    ),
}


@functools.lru_cache(maxsize=None)
def _medians(noise: Noise) -> np.ndarray:
    """Pool × (base, head): logarithms of the medians of both sides' turns in a pair,
    without the processes' luck.
    """
    rng = np.random.default_rng(1)
    turns = noise.within * rng.standard_normal((_POOL, len(_HEAD)))
    spiked = rng.random(turns.shape) < noise.spikes
    turns += np.where(spiked, np.log1p(0.5 * rng.random(turns.shape)), 0)
    walk = np.cumsum(rng.standard_normal(turns.shape), axis=1) / np.sqrt(len(_HEAD))
    turns += noise.drift * walk + noise.trend * np.linspace(0, 1, len(_HEAD))
    return np.stack(
        [np.median(turns[:, side], axis=1) for side in (~_HEAD, _HEAD)], axis=1
    )


def session(
    rng: np.random.Generator, noise: Noise, changes: np.ndarray, pairs: int = 30
) -> np.ndarray:
    """Cases × pairs of log(head/base), where head takes the share `changes` more of
    each case's time.
    """
    shape = len(changes), pairs, 2
    times = _medians(noise)[
        rng.integers(_POOL, size=shape[:2])
    ] + noise.process * rng.standard_normal(shape)
    if noise.slow:
        times = times + np.log1p(noise.mode) * (rng.random(shape) < noise.slow)
    times[..., 1] += np.log1p(changes)[:, None]
    if (
        noise.resolution
    ):  # of the median is that of the samples: rounding keeps their order
        own = rng.random(
            (len(changes), 1, 1)
        )  # where between two ticks a case's time lies
        times = np.log(np.maximum(np.round(np.exp(times) / noise.resolution + own), 1))
    return times[..., 1] - times[..., 0]
