"""What a kernel over several tensors must know of them, in one table on the device, and
the outputs in one buffer.

A table holds addresses, sizes and strides, never values, so it is right for as long as
those numbers are; it is copied once and looked up by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from batchline.kernels.op import Tensors

_ALIGNMENT = 16  # bytes, of each output's start
_MOST = 256  # tables in memory; one for 50 tensors is 3.5 KiB


@dataclass(frozen=True, eq=False)
class Table:
    """numbers: int64[7, width], one column per tensor, in blocks of `columns` columns that
    are counted through all tensors.

    Its rows: the number of the first block after the tensor's, its first block's number
    times `columns`, address, P, stride_b, stride_p, and where in the outputs' buffer it
    starts. Strides and starts are in elements. `width` is a power of two; what is past
    the last tensor ends after all `blocks`, and is never reached.
    """

    numbers: torch.Tensor
    columns: int
    blocks: int
    _pieces: tuple[int, ...]  # of the buffer: the outputs, and what lies between them
    _places: tuple[int, ...]  # of the outputs among the pieces
    _stream: int
    _host: torch.Tensor = field(repr=False)  # a captured copy reads it at each replay

    @property
    def width(self) -> int:
        return self.numbers.shape[1]

    def outputs(self, like: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """A fresh buffer and the means in it, each from a multiple of 16 bytes."""
        buffer = like.new_empty(sum(self._pieces))
        pieces = buffer.split(self._pieces)
        return buffer, tuple([pieces[place] for place in self._places])


_tables: dict[tuple, Table] = {}  # the latest ones
# A CUDA graph reads its table at each replay, and nothing says when it has none left.
# A dict, since it grows while a variant is timed: its content is no replaced binding.
_captured: dict[Table, None] = {}


def table_of(gs: Sequence[torch.Tensor], columns_for: Callable[..., int]) -> Table:
    """The table of these tensors; `columns_for`, a function of them, says how wide a
    block is.

    The copy is not waited for: it is in the order of the current stream, and another
    stream gets one of its own. A capture takes what is there, since the device was idle
    when it began; else the copy becomes part of the graph.
    """
    addresses, shapes, strides = (
        tuple(map(of, gs))
        for of in (torch.Tensor.data_ptr, torch.Tensor.size, torch.Tensor.stride)
    )
    key = columns_for, gs[0].device, gs[0].dtype, addresses, shapes, strides
    stream, capturing = _stream_of(gs[0].device)
    table = _tables.get(key)
    if table is None or table._stream != stream and not capturing:
        table = _made(gs, columns_for(*gs), stream)
        if not capturing:
            _tables[key] = table
            if len(_tables) > _MOST:
                _tables.pop(
                    next(iter(_tables)), None
                )  # another thread may have dropped the same one
    if capturing:
        _captured[table] = None
    return table


def _stream_of(device: torch.device) -> tuple[int, bool]:
    """The current stream, and whether a CUDA graph is being captured from it."""
    if device.type != "cuda":
        return 0, False
    return (
        torch.cuda.current_stream(device).cuda_stream,
        torch.cuda.is_current_stream_capturing(),
    )


def blocks_of(gs: Sequence[torch.Tensor], columns: int) -> int:
    """How many blocks of `columns` columns the tensors have."""
    return sum(-(-g.shape[1] // columns) for g in gs)


def _made(gs: Sequence[torch.Tensor], columns: int, stream: int) -> Table:
    multiple = _ALIGNMENT // gs[0].element_size()
    rows, pieces, places, blocks = [], [], [], 0
    for g in gs:
        first, blocks = blocks, blocks + blocks_of([g], columns)
        rows.append(
            (
                blocks,
                first * columns,
                g.data_ptr(),
                g.shape[1],
                *g.stride(),
                sum(pieces),
            )
        )
        places.append(len(pieces))
        pieces += (
            [g.shape[1], -g.shape[1] % multiple]
            if g.shape[1] % multiple
            else [g.shape[1]]
        )
    width = 1 << (len(rows) - 1).bit_length()
    rows += [(blocks + 1, 0, 0, 0, 0, 0, 0)] * (width - len(rows))
    host = torch.tensor(rows, dtype=torch.int64).T.contiguous()
    if gs[0].is_cuda:
        host = host.pin_memory()
    return Table(
        host.to(gs[0].device, non_blocking=True),
        columns,
        blocks,
        tuple(pieces),
        tuple(places),
        stream,
        host,
    )
