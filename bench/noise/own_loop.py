"""The advisor for a training loop of your own: `batchline.advise(times, noise)`, of step
times and of NoiseMeter's readings that the loop itself has taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batchline.bench.errors import UsageError
from batchline.bench.noise import advisor
from batchline.bench.noise.advice import Advice
from batchline.bench.stats.noise_scale import NoiseEstimate, Stream


def advise(
    times: Mapping[int, float | Sequence[float]],
    noise: NoiseEstimate | Sequence,
    *,
    batch: int | None = None,
    peaks: Mapping[int, float] | None = None,
    limit_bytes: float | None = None,
    cost_cap: float | None = None,
) -> Advice:
    """The batch size to train at; `print` of what it returns says it.

        readings = []
        times = {}
        for size in (8, 32, 128):                  # step times at two batches or more
            times[size] = [time_a_step(size) for _ in range(10)]
        for x, y in loader:
            with meter.every(50) as measured:
                criterion(model(x), y).backward()
            if measured:
                readings.append(meter.reading)
        print(batchline.advise(times, readings, batch=32))

    Args:
        times: seconds of a whole training step by its batch, one or several of each.
        noise: readings of several steps, or an estimate, as `meter.reading.noise()`.
        batch: in use, to compare with.
        peaks: bytes that a step takes at its peak, by its batch, above the model's own.
        limit_bytes: what the device has left for them; a tenth of it is kept free.
        cost_cap: the examples used may be so many times the least.

    Raises:
        UsageError: for whatever no batch follows from, in one line.
    """
    peaks = peaks or {}
    try:
        steps = [
            {
                "batch": size,
                "samples_s": (
                    [taken] if isinstance(taken, (int, float)) else list(taken)
                ),
                "peak_bytes": peaks.get(size),
            }
            for size, taken in times.items()
        ]
        return advisor.advise(
            steps,
            _estimate(noise).to_json(),
            limit_bytes,
            current_batch=batch,
            cost_cap=cost_cap,
        )
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _estimate(noise: NoiseEstimate | Sequence) -> NoiseEstimate:
    if isinstance(noise, NoiseEstimate):
        return noise
    readings = noise if isinstance(noise, Sequence) else [noise]
    stream = Stream()
    for reading in readings:
        if not hasattr(reading, "whole"):
            raise UsageError(
                "the noise is NoiseMeter's readings of several steps, or an estimate as "
                f"meter.reading.noise() gives, not {type(reading).__name__}"
            )
        stream.add(reading.whole)
    if len(stream) < 2:
        raise UsageError(
            f"an interval needs the readings of two steps or more, and there are {len(stream)}: of one step "
            "give meter.reading.noise()"
        )
    return stream.estimate()
