"""The fixture `batchline_benchmark`: a callable of an existing pytest-benchmark suite timed
by Batchline's clocks, with its peak memory and what binds it in `extra_info`.

pytest loads this file wherever Batchline is installed; it imports nothing but pytest
until the fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

NAME = "batchline"  # of what is added to a benchmark's extra_info
_THEIRS = ("benchmark", "pytest_benchmark.plugin")  # by its entry point, and by -p


@pytest.fixture
def batchline_benchmark(request):
    """Call it as pytest-benchmark's `benchmark`: it times the function and returns what
    that returns.

        def test_it(batchline_benchmark):
            y = batchline_benchmark(torch.mm, a, b, flops=2 * 512**3, least_bytes=3 * 2**20)

    With --benchmark-disable it calls the function once.
    """
    if not any(map(request.config.pluginmanager.hasplugin, _THEIRS)):
        pytest.fail(
            "batchline_benchmark hands its times to pytest-benchmark, which is not "
            "installed or is switched off: pip install pytest-benchmark",
            pytrace=False,
        )
    from batchline.bench.running.replay import Replay

    replay = Replay()
    theirs = request.node.get_closest_marker("benchmark")
    options = {**(theirs.kwargs if theirs else {}), "timer": replay.timer}
    # In front, where pytest-benchmark takes the one that it heeds.
    request.node.add_marker(pytest.mark.benchmark(**options), append=False)
    return Benchmark(request.getfixturevalue("benchmark"), replay)


class Benchmark:
    """Times one callable, once."""

    def __init__(self, benchmark, replay):
        self._benchmark, self._replay = benchmark, replay

    @property
    def extra_info(self) -> dict:
        """What is stored beside the times."""
        return self._benchmark.extra_info

    def __call__(
        self,
        function: Callable,
        *inputs,
        clock: str | None = None,
        flops: float | None = None,
        least_bytes: float | None = None,
    ):
        """Time `function(*inputs)`; returns its result.

        Args:
            clock: a name as `batchline run --clocks` takes it; by default the one that
            ranks. It is chosen from the inputs' device, as the others are.
            flops, least_bytes: its work; with both, the ceilings of the machine are
            measured once in the process, for seconds, and the regime and the share of
            the ceiling are added.
        """
        if self._benchmark.disabled:
            return self._benchmark(function, *inputs)
        from batchline.bench.errors import UsageError
        from batchline.bench.measure.timing.of_callable import Work, timed
        from batchline.bench.statuses import NotMeasured

        if (flops is None) != (least_bytes is None):
            pytest.fail("give both flops and least_bytes, or none", pytrace=False)
        work = None if flops is None else Work(flops, least_bytes)
        try:
            done = timed(function, inputs, clock, work)
        except (UsageError, NotMeasured) as why:
            pytest.fail(str(why), pytrace=False)
        self.extra_info[NAME] = done.facts
        self._replay.into(self._benchmark, done.samples_s, done.iterations)
        return done.result
