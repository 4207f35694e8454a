"""What is seen of one metered step while it runs: calls, contributions, and each
parameter's whole gradient; and what it leaves of each parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.contributions import Contribution, combined


class Step:
    """What one metered step has recorded. Layers report their calls and contributions;
    hooks on the parameters report autograd's gradients.

    Args:
        names: every parameter that is measured, and its name.
    """

    def __init__(self, names: Mapping[nn.Parameter, str]):
        self.batch: int | None = None
        self._whose_batch = ""
        self._names = names
        self._calls: dict[nn.Parameter, int] = dict.fromkeys(names, 0)
        self._uses: dict[nn.Parameter, list[Contribution]] = defaultdict(list)
        self._replaced: dict[nn.Parameter, tuple[int, int]] = {}
        self._totals: dict[nn.Parameter, torch.Tensor] = {}
        self._statistics: dict[nn.Parameter, ParameterStatistics] = {}
        self._astray: list[str] = []
        self._pass: int | None = None
        self._over = False

    def sees_batch(self, whose: str, size: int) -> None:
        """The first dimension of a call's input. The first one told is the batch.

        Raises:
            UsageError: if it is another one than before: the samples are mixed, or in
            another dimension.
        """
        if self.batch is None:
            self.batch = size
            self._whose_batch = whose
            if not size:
                raise UsageError(
                    f"{whose} was given a batch of no samples: there is no gradient to measure"
                )
        elif size != self.batch:
            raise UsageError(
                f"{whose} has first dimension {size}, and {self._whose_batch} {self.batch}: samples must "
                "stay apart in dimension 0 of every layer (reshape to [batch, …], or expand over it)"
            )

    def calls(
        self, layer: str, x: torch.Tensor, parameters: Iterable[nn.Parameter]
    ) -> None:
        """A layer's forward call, with input x[B,…]."""
        size = len(x) if x.dim() else 1
        if size != self.batch or not size:
            self.sees_batch(layer, size)
        for parameter in parameters:
            self._calls[parameter] += 1

    def once(self, parameter: nn.Parameter) -> bool:
        """Whether one call alone has used it so far. Asked in the backward pass, that
        is: in the step.
        """
        return self._calls[parameter] == 1

    def backpropagates(self) -> bool:
        """Told by whatever runs within a backward pass; whether that still counts: a
        graph may outlive the step.

        Raises:
            UsageError: in a second backward pass.
        """
        if self._over:
            return False
        # torch counts its backward passes and has no public name for it;
        # utils.checkpoint relies on the same number.
        number = torch._C._current_graph_task_id()
        if self._pass is None:
            self._pass = number
        elif number != self._pass:
            raise UsageError(
                "two backward passes in one metered step: add the losses and call backward once, or "
                "measure each pass in a `with` of its own (checkpointing needs use_reentrant=False)"
            )
        return True

    def end(self) -> None:
        """Take in nothing from now on."""
        self._over = True

    def adds(self, parameter: nn.Parameter, use: Contribution) -> None:
        """What a call contributes to the samples' gradients of a parameter."""
        self._uses[parameter].append(use)

    def replaces(
        self,
        parameter: nn.Parameter,
        gradient: torch.Tensor,
        n: torch.Tensor,
        d: torch.Tensor,
    ) -> torch.Tensor:
        """The gradient that a parameter's only call returns to autograd, which is B·ḡ,
        and n and d beside it.
        """
        self._statistics[parameter] = ParameterStatistics(
            torch.linalg.vector_norm(gradient), n, d
        )
        if gradient.dtype != parameter.dtype:
            gradient = gradient.to(parameter.dtype)
        self._replaced[parameter] = gradient.data_ptr(), gradient._version
        return gradient

    def receives(self, parameter: nn.Parameter, total: torch.Tensor) -> None:
        """The sum of all gradients that autograd has for a parameter, before it goes to
        .grad.
        """
        ours = self._replaced.get(parameter)
        if ours is None:
            self._totals[parameter] = total.detach()
        elif ours != (
            total.data_ptr(),
            total._version,
        ):  # another one was added, into its memory or elsewhere
            self._astray.append(self._names[parameter])

    def finish(self) -> dict[str, ParameterStatistics]:
        """{‖B·ḡ‖, n, d} of what the samples contributed to each parameter's gradient.

        Raises:
            UsageError: if there was no backward pass, or a parameter had a gradient
            from outside its layer.
        """
        self._astray += [
            self._names[parameter]
            for parameter in self._totals
            if parameter not in self._uses
        ]
        if self._astray:
            raise UsageError(
                f"{', '.join(self._astray)}: used outside its own module's call (or changed by a hook), "
                "so its samples' gradients can't be seen; call the module, or freeze the parameter"
            )
        if self._pass is None:
            raise UsageError(
                "no backward pass was seen in the metered step: both the model's call and loss.backward() "
                "belong inside the `with`, with gradients enabled"
            )
        for parameter, uses in self._uses.items():
            mean, n, d = combined(uses, self.batch, parameter.numel())
            gradient = mean.reshape(-1) * self.batch
            total = self._totals.get(parameter)
            gap = (
                None
                if total is None
                else torch.linalg.vector_norm(
                    total.to(mean.dtype).reshape(-1) - gradient
                )
            )
            coarsest = max(
                torch.finfo(dtype).eps
                for dtype in (parameter.dtype, *(use.dtype for use in uses))
            )
            self._statistics[parameter] = ParameterStatistics(
                torch.linalg.vector_norm(gradient), n, d, gap, coarsest
            )
        return {
            name: self._statistics[parameter]
            for parameter, name in self._names.items()
            if parameter in self._statistics
        }


class ParameterStatistics(NamedTuple):
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
