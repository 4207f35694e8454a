"""Samples that were taken elsewhere, handed to pytest-benchmark."""

from __future__ import annotations

from collections.abc import Sequence


class Replay:
    """A timer that each call of what pytest-benchmark times moves on by its sample."""

    def __init__(self):
        self._elapsed_s = 0.0

    def timer(self) -> float:
        return self._elapsed_s

    def into(self, benchmark, samples_s: Sequence[float], iterations: int) -> None:
        """Give `benchmark` (the fixture) the samples as its rounds: seconds of a call,
        each the mean of so many calls.
        """
        calls = (sample for sample in samples_s for _ in range(iterations))

        def target():
            self._elapsed_s += next(
                calls, 0.0
            )  # beyond the rounds, pytest-benchmark calls once more for a result

        benchmark.pedantic(target, rounds=len(samples_s), iterations=iterations)
