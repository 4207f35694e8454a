"""`kernels._cuda.ptx` for Numba's simulator: the same functions on the host's memory, a
Python thread for each lane.

Instructions of a warp meet at the block's barrier, so all threads of the block must
reach them together. A copy by cp_async lands when it is waited for and not before, and
an address that the hardware would refuse fails here too.
"""

from __future__ import annotations

import ctypes
import functools
import threading

import numpy as np

_IN_MEMORY = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int16": np.int16,
    "int32": np.int32,
}
_INTEGERS = {"int16": ctypes.c_int16, "int32": ctypes.c_int32}
_WARP = 32


@functools.cache
def load(dtype: str, lanes: int = 1):
    def load_global(address):
        values = _numbers(_memory(address, dtype, lanes), dtype)
        return values[0] if lanes == 1 else tuple(values)

    number = _INTEGERS.get(dtype, ctypes.c_float)
    integers = number * lanes

    def load_integers(
        address,
    ):  # tables are read so by every thread, and an array of NumPy's takes ten times as long
        assert address % ctypes.sizeof(integers) == 0, "a misaligned address"
        return (
            integers.from_address(int(address))[0]
            if lanes == 1
            else tuple(integers.from_address(int(address)))
        )

    return load_integers if dtype in _INTEGERS else load_global


@functools.cache
def store(dtype: str, lanes: int = 1):
    def store_global(address, value):
        kind = np.int32 if dtype == "int32" else np.float32
        numbers = np.atleast_1d(np.asarray(value, kind))
        _memory(address, dtype, lanes)[:] = (
            _rounded_to_bfloat16(numbers) if dtype == "bfloat16" else numbers
        )

    return store_global


@functools.cache
def pack(dtype: str):
    def pack_two(low, high):
        numbers = np.array([low, high], np.float32)
        elements = (
            _rounded_to_bfloat16(numbers)
            if dtype == "bfloat16"
            else numbers.astype(np.float16)
        )
        return elements.view(np.int32)[0]

    return pack_two


@functools.cache
def unpack(dtype: str):
    def unpack_two(word):
        elements = np.array([word], np.int32).view(_IN_MEMORY[dtype])
        return tuple(_numbers(elements, dtype))

    return unpack_two


def swap(word, mask):
    return _warp(word)[_lane() ^ mask]


def load_shared(array, index):
    assert index % 4 == 0
    return tuple(array[index : index + 4])


def store_shared(array, index, values):
    assert index % 4 == 0
    array[index : index + 4] = values


def cp_async(array, index, address, bytes_copied):
    assert index % 8 == 0 and address % 16 == 0 and 0 <= bytes_copied <= 16
    _copies().setdefault("open", []).append((array, index, address, bytes_copied // 2))


def cp_async_commit():
    copies = _copies()
    copies.setdefault("groups", []).append(copies.pop("open", []))


@functools.cache
def cp_async_wait(pending: int):
    def wait():
        groups = _copies().setdefault("groups", [])
        while len(groups) > pending:
            for array, index, address, elements in groups.pop(0):
                array[index : index + 8] = 0
                if elements:
                    array[index : index + elements] = _memory(
                        address, "int16", elements, aligned=False
                    )

    return wait


@functools.cache
def ldmatrix(transposed: bool):
    def load_matrices(array, index):
        assert index % 8 == 0
        rows, lane = _warp(index), _lane()
        matrices = [
            np.stack([array[row : row + 8] for row in rows[8 * j : 8 * j + 8]])
            for j in range(4)
        ]
        pairs = [
            (matrix.T if transposed else matrix)[
                lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2
            ]
            for matrix in matrices
        ]
        return tuple(np.ascontiguousarray(pair).view(np.int32)[0] for pair in pairs)

    return load_matrices


@functools.cache
def mma(dtype: str):
    def multiply_add(a0, a1, a2, a3, b0, b1, c):
        fragments = np.array(_warp((a0, a1, a2, a3, b0, b1)), np.int32).view(
            _IN_MEMORY[dtype]
        )
        numbers = _numbers(fragments.ravel(), dtype).reshape(
            8, 4, 6, 2
        )  # lane // 4, lane % 4, register, half
        a = np.empty((16, 16), np.float32)
        b = np.empty((16, 8), np.float32)
        for register in range(4):
            row, column = 8 * (register % 2), 8 * (register // 2)
            a[row : row + 8, column : column + 8] = numbers[:, :, register].reshape(
                8, 8
            )
        for register in range(2):
            b[8 * register : 8 * register + 8] = (
                numbers[:, :, 4 + register].reshape(8, 8).T
            )
        row, column = _lane() // 4, _lane() % 4 * 2
        own = a[[row, row + 8]] @ b[:, column : column + 2]
        return tuple(own.ravel() + np.asarray(c, np.float32))

    return multiply_add


def _memory(address, dtype, lanes, aligned=True):
    element = np.dtype(_IN_MEMORY[dtype])
    assert (
        address % (element.itemsize * (lanes if aligned else 1)) == 0
    ), "a misaligned address"
    return np.frombuffer(
        (ctypes.c_char * (lanes * element.itemsize)).from_address(int(address)), element
    )


def _numbers(elements, dtype):
    return (
        (elements.astype(np.uint32) << 16).view(np.float32)
        if dtype == "bfloat16"
        else elements.astype(np.float32)
    )


def _rounded_to_bfloat16(numbers):
    bits = numbers.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(numbers), 0x7FFF, rounded).astype(np.uint16)


def _lane():
    return threading.current_thread().thread_id % _WARP


def _copies() -> dict:
    return threading.current_thread().__dict__.setdefault("_asynchronous_copies", {})


def _warp(value) -> list:
    """What each lane of this thread's warp passed, by way of the block's barrier."""
    thread = threading.current_thread()
    board = thread._manager.__dict__.setdefault("_exchange", {})
    board[thread.thread_id] = value
    thread.syncthreads()
    first = thread.thread_id - _lane()
    values = [board[lane] for lane in range(first, first + _WARP)]
    thread.syncthreads()
    return values
