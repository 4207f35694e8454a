"""Where a case's history of medians changed its level, by ruptures' PELT and a t test
of each change that it offers.

The critical value is calibrated so that a flat history shows no change, because
hundreds of cases are looked at each time. Simulated (tests/test_change_points.py
repeats it in small): of flat histories of 10 to 200 runs with 2% of noise, independent
or AR(1) with φ = 0.3, without spikes or with one run in fifty slower by 5-50%, about 1%
at most show a change. A step of +5% in such noise is found, within three runs, in 83 to
89 of a hundred histories with 16 runs on either side, in about eight of ten with 8
behind it and 100 before it, and with 8 on either side in four or five of ten. That last
step is 5 standard errors, and noise of φ = 0.3 alone reaches 5.4 in one of a hundred
histories that short: a test that sees more of them gives more false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_RUNS = 10  # two segments
LEAST_SEGMENT = 5  # two slow runs in a row are bad luck: three of five would be needed
_LEAST_NOISE = (
    0.01  # of a logarithm: processes differ by 1%, however alike a few runs look
)
_CRITICAL_T = 5.5
_CANDIDATE_PENALTY = (
    4  # in variances: offers too many changes, which the t test then drops
)
_SPIKE = 4.0  # standard deviations from the median of a run and its three neighbours on each side
_NEIGHBOURS = 3
_SIGMA_OF_MAD = 1.4826  # of the normal distribution


@dataclass(frozen=True)
class ChangePoint:
    """`index` is the first run of the new level; the levels are geometric means between
    the neighbouring changes.
    """

    index: int
    before: float
    after: float

    @property
    def effect(self) -> float:
        """The change as a share: +0.05 is 5% more."""
        return self.after / self.before - 1


def change_points(values: Sequence[float]) -> list[ChangePoint]:
    """The changes of level in a history of positive values, the oldest first; none in
    fewer than LEAST_RUNS.

    The l2 cost of the logarithms, without spikes, over a noise scale that steps do not
    widen (the MAD of the differences, over √2), is segmented by PELT (Killick,
    Fearnhead and Eckley, JASA 107, 2012). Then the change with the least t between its
    neighbours, in the spread within all segments, is dropped until every t reaches the
    critical value.

    Raises:
        ValueError: if a value is not a positive finite number.
    """
    logs = np.asarray(values, dtype=float)
    if not (np.isfinite(logs).all() and (logs > 0).all()):
        raise ValueError("a history of times needs positive finite numbers")
    if len(logs) < LEAST_RUNS:
        return []
    logs = _without_spikes(np.log(logs))
    bounds = _candidates(logs)
    while len(bounds) > 2:
        t = _t_of_changes(logs, bounds)
        if t.min() >= _CRITICAL_T:
            break
        del bounds[1 + int(t.argmin())]
    levels = np.exp([part.mean() for part in _parts(logs, bounds)])
    return [
        ChangePoint(index, float(before), float(after))
        for index, before, after in zip(bounds[1:-1], levels, levels[1:])
    ]


def run_noise(logs: np.ndarray) -> float:
    """The standard deviation of one run, of the differences between neighbours; at
    least 1%.
    """
    return max(
        _SIGMA_OF_MAD * float(np.median(np.abs(np.diff(logs)))) / 2**0.5, _LEAST_NOISE
    )


def _without_spikes(logs: np.ndarray) -> np.ndarray:
    """A run that is far from the median of its neighbourhood becomes it; a step that
    lasts stays (Hampel's filter).
    """
    padded = np.pad(logs, _NEIGHBOURS, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1)
    local = np.median(windows, axis=1)
    return np.where(np.abs(logs - local) > _SPIKE * run_noise(logs), local, logs)


def _candidates(logs: np.ndarray) -> list[int]:
    """0, where a segment may begin, and the length."""
    import ruptures

    scaled = (logs / run_noise(logs))[:, None]
    search = ruptures.KernelCPD(kernel="linear", min_size=LEAST_SEGMENT).fit(
        scaled
    )  # the l2 cost, PELT, in C
    return [0, *search.predict(pen=_CANDIDATE_PENALTY)]


def _parts(logs: np.ndarray, bounds: Sequence[int]) -> list[np.ndarray]:
    return [logs[start:end] for start, end in zip(bounds, bounds[1:])]


def _t_of_changes(logs: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
    parts = _parts(logs, bounds)
    within = sum(((part - part.mean()) ** 2).sum() for part in parts) / (
        len(logs) - len(parts)
    )
    spread = max(within**0.5, _LEAST_NOISE)
    return np.array(
        [
            abs(after.mean() - before.mean())
            / (spread * (1 / len(before) + 1 / len(after)) ** 0.5)
            for before, after in zip(parts, parts[1:])
        ]
    )
