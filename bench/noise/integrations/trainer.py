"""The noise scale of a training with transformers' Trainer."""

from __future__ import annotations

from transformers import TrainerCallback

from batchline.bench.noise.meter import NoiseMeter


class TrainerNoise(TrainerCallback):
    """Meters every so many optimiser steps of a Trainer, on one device or many, and adds
    the figures of `meter.scalars()` to what it logs.

        noise = TrainerNoise(every=50)
        Trainer(model, args, train_dataset=data, callbacks=[noise]).train()
        print(noise.meter.history())

    A metered step begins with the first micro-batch and ends before clipping. The
    loss is taken for a mean over samples. A token mean is one where all samples have as
    many labels; else `weights=` tells how many.

    Args:
        every: optimiser steps from one metered step to the next.
        half_life: of the history that is logged, in metered steps.
        options: NoiseMeter's.
    """

    def __init__(self, every: int = 50, half_life: float = 200, **options):
        self.meter: NoiseMeter | None = None
        self._every = every
        self._half_life = half_life
        self._options = {"reduction": "mean", **options}
        self._step = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._step = None  # a training that broke off may have left one
        if self.meter is None:
            self.meter = NoiseMeter(model, **self._options)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self._every == 0:
            accumulate = args.gradient_accumulation_steps
            self._step = self.meter.step(accumulate=accumulate)
            self._step.__enter__()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(None, None, None)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.meter is None or not self.meter.has_reading:
            return
        scalars = self.meter.scalars(self._half_life)
        if logs is not None:
            logs.update(scalars)
        if state.log_history:
            state.log_history[-1].update(scalars)
