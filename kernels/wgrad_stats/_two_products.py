"""ḡ, n and d where each sample's gradient is multiplied twice: once for its sum and its
squares, and once more, along ḡ, for d.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from batchline.kernels.grad_reduce.triton_whole_words import sum_rows
from batchline.kernels.grad_stats._triton_sums import finish
from batchline.kernels.statistics import of_nothing
from batchline.kernels.tuning import Tunable
from batchline.kernels.wgrad_stats._gradient_tiles import least_splits


def multiply_twice(
    x: torch.Tensor,
    dy: torch.Tensor,
    tunable: Tunable,
    parts_of: Callable[[torch.Tensor, torch.Tensor, Mapping], int],
    reduce: Callable[..., None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ḡ [O,I], n [B] and d [B], in fp32.

    Args:
        tunable: its configurations have `SPLITS`, of the batch.
        parts_of: of how many parts n of a sample is the sum, in a configuration.
        reduce: `reduce(x, dy, means, dots, config, scale)` writes each part of n to
        dots [parts, B] and scale·ΣG_b of each split to means [splits, O, I]. Without a
        scale means holds ḡ, for all splits the same (stride 0), and dots gets the parts
        of d.
    """
    (batch, tokens, i), o = x.shape, dy.shape[2]
    if batch == 0:
        return of_nothing((o, i), x.dtype, x.device)
    mean = torch.empty((o, i), dtype=torch.float32, device=x.device)
    if 0 in (tokens, i, o):
        return mean.zero_(), *torch.zeros(
            (2, batch), dtype=torch.float32, device=x.device
        )
    config = dict(tunable.choose(x, dy))
    splits = max(config.pop("SPLITS"), least_splits(batch))
    parts = parts_of(x, dy, config)
    dots = torch.empty((parts, 2, batch), dtype=torch.float32, device=x.device)
    if splits == 1:
        reduce(x, dy, mean[None], dots[:, 0], config, 1 / batch)
    else:
        partial = torch.empty((splits, o, i), dtype=torch.float32, device=x.device)
        reduce(x, dy, partial, dots[:, 0], config, 1.0)
        sum_rows(partial.flatten(1), mean.view(-1), 1 / batch)
    reduce(x, dy, mean.expand(splits, -1, -1), dots[:, 1], config)
    return mean, *finish(dots.flatten(1))
