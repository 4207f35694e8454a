"""The values of a problem's inputs: the same buffers for every variant, with new values
that no variant can foresee.

A result that was remembered, or made from values that were looked at here and there, is
then wrong. A copy that no variant is given says what the inputs must hold, and what the
reference is computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from batchline.bench.measure.checking import check
from batchline.bench.measure.checking.check import SECRET, twins
from batchline.kernels.op import Op, Tensors

CHANGED_INPUTS = "it changed its inputs, which it shares with the others"
_SPIKES = 2  # elements with new values, each time
_LARGE = 32  # times the usual magnitude, at the least
_EIGHTHS = (
    8  # fp8 inputs are eighths (kernels.draw), or tensor cores would round their sums
)
_MOST_WORDS = 8192  # of 8 bytes that a quick look compares
_LOOK_WORDS = 512  # of a larger buffer, at a random place
_SCALE_ELEMENTS = 65536  # that say how large the values of an input are


@dataclass(frozen=True)
class _Spike:
    """One element of one input, by its indices, and what it held before."""

    number: int
    indices: tuple[int, ...]
    before: float
    value: float


class Values:
    """What the inputs of one problem hold.

    Args:
        op: whose inputs they are.
        inputs: what the buffers hold first; they are copied. Views with stride 0 and
        windows of one storage stay such. draw: seed → inputs of the same layout with
        fresh values.
    """

    def __init__(self, op: Op, inputs: Tensors, draw: Callable[[int], Tensors]):
        self._op, self._draw = op, draw
        self._true = twins(inputs)
        self._true_words = _as_integers(self._true)
        self._sets: list[Tensors] = []
        self._words: list[tuple[torch.Tensor, torch.Tensor]] = (
            []
        )  # each buffer's memory, and what must be there
        self.sets(
            1
        )  # in new memory: what was drawn may be what the op keeps for itself, as trained weights are
        self._scales: dict[int, float] = {}
        self._spikes: tuple[_Spike, ...] = ()
        self._expected: check.Expected | None = None
        self._known: tuple[tuple[_Spike, ...], check.Expected] | None = None
        self._is_redrawn = False

    @property
    def inputs(self) -> Tensors:
        """The buffers that every variant is given."""
        return self._sets[0]

    def sets(self, count: int) -> list[Tensors]:
        """`count` sets of buffers with the same values, the inputs the first of them;
        all follow from now on.
        """
        while len(self._sets) < count:
            self._sets.append(twins(self._true))
            self._words += zip(_as_integers(self._sets[-1]), self._true_words)
        return self._sets[:count]

    def drop_sets(self) -> None:
        """Keep the inputs alone."""
        del self._sets[1:]
        del self._words[len(self._true_words) :]

    @property
    def true(self) -> Tensors:
        """The copy that no variant is given."""
        return self._true

    def expected(self) -> check.Expected:
        """What a variant must give on the present values; computed once for them."""
        if self._expected is None:
            self._expected = check.expect(self._op, self._true)
            self._known = self._spikes, self._expected
        return self._expected

    @property
    def knows_new(self) -> bool:
        """Whether what is expected has been computed of values that are not the first
        ones.
        """
        return self._known is not None and (self._is_redrawn or bool(self._known[0]))

    def renew(self) -> None:
        """Give a few elements at random places new values, and the last such ones their
        own ones back.

        They are so large that an output which takes them in moves beyond any tolerance.
        """
        self._put(())
        self._put(self._draw_spikes())

    def rewrite(self) -> None:
        """Write the same values at the same places, by all that `renew` does: the
        caches are as after that.
        """
        spikes, expected = self._spikes, self._expected
        self._put(())
        self._draw_spikes()
        self._put(spikes)
        self._expected = expected

    def recall(self) -> bool:
        """Go back to the last values of which the expected outputs are known; False if
        there are none.
        """
        if self._known is None:
            return False
        spikes, expected = self._known
        self._put(spikes)
        self._expected = expected
        return True

    def redraw(self) -> None:
        """Give every element a new value."""
        fresh = self._draw(SECRET.getrandbits(62))
        for true, new in zip(self._true_words, _as_integers(fresh)):
            true.copy_(new)
        self.restore()
        self._scales.clear()
        self._spikes, self._expected, self._known, self._is_redrawn = (
            (),
            None,
            None,
            True,
        )

    def restore(self) -> None:
        """Write what the inputs must hold over whatever they hold."""
        for words, true in self._words:
            words.copy_(true)

    def look_intact(self) -> bool:
        """Whether each buffer holds what it must, or of a large one a random piece."""
        return all(_piece_is_same(words, true) for words, true in self._words)

    def are_intact(self) -> bool:
        """Whether every byte of each buffer is what it must be."""
        return all(torch.equal(words, true) for words, true in self._words)

    def _draw_spikes(self) -> tuple[_Spike, ...]:
        filled = [number for number, tensor in enumerate(self._true) if tensor.numel()]
        spikes = []
        for _ in range(_SPIKES if filled else 0):
            number = SECRET.choice(filled)
            tensor = self._true[number]
            indices = tuple(SECRET.randrange(size) for size in tensor.shape)
            before = tensor[indices].item()
            spikes.append(
                _Spike(number, indices, before, self._new_value(number, before))
            )
        return tuple(spikes)

    def _new_value(self, number: int, before: float) -> float:
        tensor = self._true[number]
        if tensor.dtype.itemsize == 1:
            eighths = [
                eighth / _EIGHTHS
                for eighth in range(-_EIGHTHS, _EIGHTHS + 1)
                if eighth / _EIGHTHS != before
            ]
            return SECRET.choice(eighths)
        if number not in self._scales:
            self._scales[number] = _scale(tensor)
        size = (_LARGE + len(tensor) ** 0.5) * self._scales[
            number
        ]  # a mean over the batch must move, too
        return SECRET.choice((-size, size)) * SECRET.uniform(1, 2)

    def _put(self, spikes: Sequence[_Spike]) -> None:
        for tensors in (self._true, *self._sets):
            for spike in reversed(self._spikes):
                tensors[spike.number][spike.indices] = spike.before
            for spike in spikes:
                tensors[spike.number][spike.indices] = spike.value
        self._spikes, self._expected = tuple(spikes), None


def _as_integers(tensors: Tensors) -> list[torch.Tensor]:
    """The memory behind the tensors, each storage once and in their order: as integers,
    whose NaNs are equal too.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage()
        for tensor in tensors
    }
    return [
        torch.empty(
            0,
            dtype=torch.int64 if len(storage) % 8 == 0 else torch.uint8,
            device=storage.device,
        ).set_(storage)
        for storage in storages.values()
    ]


def _piece_is_same(words: torch.Tensor, true: torch.Tensor) -> bool:
    if len(words) > _MOST_WORDS:
        start = SECRET.randrange(len(words) - _LOOK_WORDS)
        words, true = (
            words[start : start + _LOOK_WORDS],
            true[start : start + _LOOK_WORDS],
        )
    return torch.equal(words, true)


def _scale(tensor: torch.Tensor) -> float:
    """The mean magnitude of the first elements of what lies in the tensor's storage."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        tensor.untyped_storage()
    )
    mean = float(whole[:_SCALE_ELEMENTS].float().abs().mean())
    return mean if 0 < mean < float("inf") else 1.0
