"""What a metered step leaves of one parameter: three small tensors, on the device until
somebody reads them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Found(NamedTuple):
    """Of the samples' contributions to a gradient: its own norm ‖B·ḡ‖ (a scalar), n[B]
    and d[B].

    `gap` is how far B·ḡ is from what autograd has for the parameter; None where
    autograd has it from here. `eps` is the coarsest spacing of the dtypes that took
    part.
    """

    norm: torch.Tensor
    squared_norms: torch.Tensor
    inner_products: torch.Tensor
    gap: torch.Tensor | None = None
    eps: float = 0.0
