"""What a meter remembers of the steps that it measured: a pair (S, G2) of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from batchline.bench.errors import UsageError
from batchline.bench.stats.forgetting import ScaleRatio, over_steps, ratio_over_steps
from batchline.bench.stats.noise_scale import NoiseEstimate, NoiseScale


class Past(NamedTuple):
    """Of one metered step: S and G2 of the whole model, and its samples; S and G2 of
    the normalisations, where there are other layers too, and of the preconditioned
    gradients; None where they are not known.
    """

    trace: float
    square: float
    batch: int
    norms: tuple[float, float] | None = None
    preconditioned: tuple[float, float] | None = None

    @classmethod
    def from_state(cls, values: Sequence) -> Past:
        """From what a state holds of it, where JSON has made lists of the pairs."""
        return cls(*(tuple(one) if isinstance(one, list) else one for one in values))


@dataclass(frozen=True)
class History:
    """The metered steps of a run, the oldest first; a step's weight halves with each
    `half_life` metered steps since.

    `left_out`: how many had no noise scale: a batch of one, an overflow.
    """

    steps: Sequence[Past]
    half_life: float
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def preconditioned(self) -> History:
        """Of the gradients over the optimizer's √v̂ + eps, of the steps that have them."""
        return self._of([past.preconditioned for past in self.steps])

    @property
    def of_norms(self) -> History:
        """Of the normalisations alone, of the steps that measured other layers too."""
        return self._of([past.norms for past in self.steps])

    def _of(self, pairs: Sequence[tuple[float, float] | None]) -> History:
        known = [
            Past(*pair, past.batch)
            for past, pair in zip(self.steps, pairs)
            if pair is not None
        ]
        left_out = self.left_out + len(pairs) - len(known)
        return History(tuple(known), self.half_life, left_out)

    def norm_ratio(self, confidence: float = 0.95) -> ScaleRatio:
        """B_simple of the normalisations over that of the whole, over the steps.

        Raises:
            UsageError: of fewer than two steps that measured other layers too, or where
            a mean of S or G2 is not above 0.
        """
        both = [past for past in self.steps if past.norms is not None]
        try:
            return ratio_over_steps(
                [NoiseScale(*past.norms) for past in both],
                [NoiseScale(past.trace, past.square) for past in both],
                [past.batch for past in both],
                self.half_life,
                confidence,
            )
        except ValueError as error:
            raise UsageError(f"normalisations beside the whole: {error}") from error

    def estimate(self, confidence: float = 0.95) -> NoiseEstimate:
        """The noise scale with an interval over the steps.

        Raises:
            UsageError: of fewer than two steps, or of so few that count.
        """
        scales = [NoiseScale(past.trace, past.square) for past in self.steps]
        batches = [past.batch for past in self.steps]
        try:
            return over_steps(scales, batches, self.half_life, confidence)
        except ValueError as error:
            left_out = f" ({self.left_out} had no noise scale)" * bool(self.left_out)
            raise UsageError(f"{error}{left_out}") from error

    def __str__(self) -> str:
        if len(self) < 2:
            return f"gradient noise over {len(self)} metered steps: not known yet"
        found = self.estimate()
        lines = [f"gradient noise over {found.method}: B_simple {found.text()}"]
        lines += [f"  warning: {warning}" for warning in found.warnings]
        if len(self.preconditioned) > 1:
            scaled = self.preconditioned.estimate()
            lines.append(f"  over the optimizer's √v̂ + eps: B_simple {scaled.text()}")
        if len(self.of_norms) > 1:
            lines.append(f"  normalisations alone: {self._norms_text()}")
        return "\n".join(lines)

    def _norms_text(self) -> str:
        try:
            return f"{self.norm_ratio()} times the whole's B_simple"
        except UsageError as error:
            return str(error)
