"""The noise scale of a training with Lightning's Trainer."""

from __future__ import annotations

from lightning.pytorch import Callback

from batchline.bench.noise.meter import NoiseMeter


class LightningNoise(Callback):
    """Meters every so many optimiser steps of a LightningModule with automatic
    optimisation, on one device or many, and logs the figures of `meter.scalars()`.

        noise = LightningNoise(every=50)
        Trainer(callbacks=[noise]).fit(module, loader)
        print(noise.meter.history())

    A metered step begins with the first micro-batch, for which gradients are cleared,
    and ends before clipping.

    Args:
        every: optimiser steps from one metered step to the next.
        model: the attribute of the LightningModule that its training_step calls with
            the samples, as "net"; None where it calls itself.
        half_life: of the history that is logged, in metered steps.
        options: NoiseMeter's.
    """

    def __init__(
        self,
        every: int = 50,
        model: str | None = None,
        half_life: float = 200,
        **options,
    ):
        self.meter: NoiseMeter | None = None
        self._every = every
        self._name = model
        self._half_life = half_life
        self._options = {"reduction": "mean", **options}
        self._step = None

    def on_train_start(self, trainer, pl_module):
        self._step = None  # a training that broke off may have left one
        if self.meter is None:
            name = self._name
            model = pl_module.get_submodule(name) if name else pl_module
            self.meter = NoiseMeter(model, **self._options)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        accumulate = trainer.accumulate_grad_batches
        begins = self._step is None and batch_idx % accumulate == 0
        if begins and trainer.global_step % self._every == 0:
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
            self._step = self.meter.step(accumulate=accumulate)
            self._step.__enter__()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(None, None, None)
            scalars = self.meter.scalars(self._half_life)
            pl_module.log_dict(scalars, batch_size=self.meter.reading.batch)
