"""Boxes that a tensor map copies, against slices of padded NumPy arrays and the swizzle
tables of the PTX ISA.
"""

import functools
import itertools

import numpy as np
import pytest
import torch

from batchline.bench.measure.emulator import tensor_maps
from tests.test_emulator_matrix import SWIZZLE_TABLES

ELEMENTS = {
    1: (np.uint8, tensor_maps.U8),
    2: (np.uint16, tensor_maps.U16),
    4: (np.uint32, tensor_maps.U32),
    8: (np.uint64, tensor_maps.U64),
}
SHARED_BYTES = 1 << 16
UNTOUCHED = 0xEE


def shared_memory():
    return np.full(SHARED_BYTES, UNTOUCHED, np.uint8)


def allocate(shape, dtype, seed=0, padding=0):
    """An array at an address that is a multiple of 16, and strides too, with `padding`
    bytes of 16 after each innermost row.
    """
    random = np.random.default_rng(seed)
    row = -(-shape[-1] * np.dtype(dtype).itemsize // 16) * 16 + 16 * padding
    rows = int(np.prod(shape[:-1]))
    raw = random.integers(0, 256, rows * row + 16, dtype=np.uint8)
    start = -raw.ctypes.data % 16
    lines = raw[start : start + rows * row].view(dtype)
    lines = lines.reshape(*shape[:-1], row // np.dtype(dtype).itemsize)
    return lines[..., : shape[-1]]


def map_of(array, box, **settings):
    """uint8[128] of an array, with `box` in the array's order of dimensions."""
    element_type = settings.pop("element_type", ELEMENTS[array.dtype.itemsize][1])
    encoded = tensor_maps.encode(
        array.ctypes.data,
        element_type,
        array.shape[::-1],
        array.strides[::-1][1:],
        box[::-1],
        **settings,
    )
    return np.frombuffer(encoded, np.uint8).copy()


def cut(array, box, corner, steps=None, fill=0):
    """The box at `corner` of an array that is surrounded by `fill`."""
    index = [
        first + np.arange(0, size, step)
        for first, size, step in zip(corner, box, steps or [1] * len(box))
    ]
    inside = [(i >= 0) & (i < size) for i, size in zip(index, array.shape)]
    values = array[np.ix_(*(np.clip(i, 0, s - 1) for i, s in zip(index, array.shape)))]
    return np.where(functools.reduce(np.logical_and.outer, inside), values, fill)


def place(box_bytes, start, swizzle):
    """Shared memory with a box in it, by the ISA's tables of chunks of 16 bytes."""
    shared = shared_memory()
    table = SWIZZLE_TABLES[swizzle]
    for offset in range(0, len(box_bytes), 16):
        address = start + offset
        order = table[address // 128 % len(table)]
        to = address // 128 * 128 + 16 * order.index(address // 16 % 8)
        shared[to : to + 16] = box_bytes[offset : offset + 16]
    return shared


def raw_bytes(values, dtype):
    return np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8)


def coordinates_of(corner):
    return np.array(corner[::-1], np.int32)


BOXES = (
    # shape, box, corners
    ((40,), (32,), ((0,), (-5,), (13,), (32,), (39,), (40,), (-32,), (-200,))),
    ((24, 50), (16, 32), ((0, 0), (3, 7), (-3, -9), (20, 40), (100, 0), (0, 50))),
    ((3, 20, 40), (2, 8, 32), ((0, 0, 0), (2, 15, 20), (-1, -7, -31), (1, 4, 33))),
    ((2, 3, 9, 40), (1, 2, 4, 32), ((0, 0, 0, 0), (1, 2, 7, 9), (1, -1, -2, -3))),
    ((2, 3, 2, 9, 40), (2, 1, 2, 4, 32), ((0, 0, 0, 0, 0), (1, 2, -1, 7, 11))),
)
CASES = [
    pytest.param(shape, box, corner, id=f"{len(shape)}d-{'_'.join(map(str, corner))}")
    for shape, box, corners in BOXES
    for corner in corners
]


@pytest.mark.parametrize("shape,box,corner", CASES)
@pytest.mark.parametrize("start", (1024, 128 * 3))
@pytest.mark.parametrize("swizzle,size", ((0, 2), (32, 1), (64, 2), (128, 4), (0, 8)))
def test_a_box_is_loaded_and_stored(shape, box, corner, start, swizzle, size):
    array = allocate(shape, ELEMENTS[size][0], padding=1)
    tensor_map = map_of(array, box, swizzle=swizzle)
    expected = raw_bytes(cut(array, box, corner), array.dtype)
    shared, before = shared_memory(), array.copy()
    loaded = tensor_maps.load_box(tensor_map, coordinates_of(corner), shared, start)
    assert loaded == len(expected) == tensor_maps.box_bytes(tensor_map)
    np.testing.assert_array_equal(shared, place(expected, start, swizzle))
    np.testing.assert_array_equal(array, before)

    target = allocate(shape, array.dtype, seed=1, padding=1)
    original, memory = target.copy(), target.base.copy()
    tensor_map = map_of(target, box, swizzle=swizzle)
    expected = target.copy()
    inside = cut(np.ones(shape, bool), box, corner, fill=False)
    for index in np.argwhere(inside):
        at = tuple(index + corner)
        expected[at] = array[at]
    tensor_maps.store_box(tensor_map, coordinates_of(corner), shared, start)
    np.testing.assert_array_equal(target, expected)
    target[...] = original
    np.testing.assert_array_equal(target.base, memory)


@pytest.mark.parametrize("shape,box,corner", CASES[::3])
@pytest.mark.parametrize("swizzle", (0, 64))
def test_pieces_are_where_the_bytes_go(shape, box, corner, swizzle):
    array = allocate(shape, np.uint16)
    tensor_map = map_of(array, box, swizzle=swizzle)
    pieces = tensor_maps.box_pieces(tensor_map, coordinates_of(corner), 2048)
    assert pieces.dtype == np.int64
    assert pieces[:, 2].sum() == tensor_maps.box_bytes(tensor_map)
    assert (pieces[:, 2] >= 1).all() and (pieces[:, 2] <= 16).all()
    shared = shared_memory()
    first = array.ctypes.data
    flat = np.lib.stride_tricks.as_strided(
        array.view(np.uint8), (array.strides[0] * array.shape[0],), (1,)
    )
    for source, target, count in pieces:
        if source < 0:
            shared[target : target + count] = 0
        else:
            shared[target : target + count] = flat[source - first :][:count]
    expected = raw_bytes(cut(array, box, corner), array.dtype)
    np.testing.assert_array_equal(shared, place(expected, 2048, swizzle))


def test_element_strides_skip_elements_but_in_the_innermost_dimension():
    array = allocate((9, 12, 40), np.uint16)
    box, steps, corner = (5, 7, 32), (2, 3, 1), (3, -2, 4)
    tensor_map = map_of(array, box, element_strides=(8, 3, 2))
    shared = shared_memory()
    tensor_maps.load_box(tensor_map, coordinates_of(corner), shared, 1024)
    expected = raw_bytes(cut(array, box, corner, steps), array.dtype)
    assert len(expected) == 3 * 3 * 64
    np.testing.assert_array_equal(shared, place(expected, 1024, 0))


@pytest.mark.parametrize(
    "dtype,element_type",
    (
        (np.float16, tensor_maps.F16),
        (np.float32, tensor_maps.F32),
        (np.float64, tensor_maps.F64),
    ),
)
def test_nan_fill(dtype, element_type):
    array = allocate((4, 40), dtype)
    array[...] = 1
    tensor_map = map_of(array, (4, 16), element_type=element_type, fill=1)
    shared = shared_memory()
    count = tensor_maps.load_box(tensor_map, coordinates_of((2, 35)), shared, 1024)
    found = shared[1024 : 1024 + count].view(dtype).reshape(4, 16)
    assert (found[:2, :5] == 1).all()
    assert np.isnan(found[2:]).all() and np.isnan(found[:, 5:]).all()


def test_a_map_made_on_the_device_is_that_made_on_the_host():
    array = allocate((3, 20, 40), np.uint16)
    expected = map_of(array, (1, 8, 64), element_type=tensor_maps.BF16, swizzle=128)
    made = bytes(128)
    for field, ordinal, value in (
        ("global_address", None, array.ctypes.data),
        ("rank", None, 2),
        ("box_dim", 0, 64),
        ("box_dim", 1, 8),
        ("box_dim", 2, 1),
        ("global_dim", 0, 40),
        ("global_dim", 1, 20),
        ("global_dim", 2, 3),
        ("global_stride", 0, array.strides[1]),
        ("global_stride", 1, array.strides[0]),
        ("element_stride", 0, 1),
        ("element_stride", 1, 1),
        ("element_stride", 2, 1),
        ("elemtype", None, 0xA),
        ("interleave_layout", None, 0),
        ("swizzle_mode", None, 3),
        ("fill_mode", None, 0),
    ):
        made = tensor_maps.replace(made, field, ordinal, value)
    assert made == expected.tobytes()


REQUIRED = ("global_address", "rank", "elemtype", "box_dim", "global_dim")
REQUIRED += ("element_stride", "global_stride")


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_field_that_was_never_set_is_noticed(missing):
    made = bytes(128)
    values = {
        "global_address": 4096,
        "rank": 1,
        "elemtype": tensor_maps.F16,
        "box_dim": 8,
        "global_dim": 8,
        "element_stride": 1,
        "global_stride": 16,
    }
    for field, value in values.items():
        for ordinal in range(2 if "_dim" in field or field == "element_stride" else 1):
            if field != missing or ordinal == 0 and missing.endswith("dim"):
                made = tensor_maps.replace(made, field, ordinal, value)
    code = tensor_maps.why_invalid(np.frombuffer(made, np.uint8).copy())
    assert code == tensor_maps.UNSET_FIELD


def test_other_bytes_are_no_map():
    for raw in (np.zeros(128, np.uint8), np.arange(128, dtype=np.uint8)):
        assert tensor_maps.why_invalid(raw) == tensor_maps.NO_MAP
    replaced = tensor_maps.replace(bytes(range(128)), "rank", None, 1)
    raw = np.frombuffer(replaced, np.uint8).copy()
    assert tensor_maps.why_invalid(raw) == tensor_maps.NO_MAP


GOOD = dict(
    address=4096,
    element_type=tensor_maps.F16,
    shape=(64, 64),
    strides=(128,),
    box=(64, 8),
    swizzle=128,
)


@pytest.mark.parametrize(
    "change,code",
    (
        (dict(address=4104), tensor_maps.MISALIGNED_ADDRESS),
        (dict(element_type=tensor_maps.TF32), tensor_maps.BAD_TYPE),
        (dict(element_type=13), tensor_maps.BAD_TYPE),
        (dict(element_type=-1), tensor_maps.BAD_TYPE),
        (dict(shape=(64, 0)), tensor_maps.EMPTY_DIMENSION),
        (dict(shape=(64, 1 << 32)), tensor_maps.EMPTY_DIMENSION),
        (dict(strides=(120,)), tensor_maps.BAD_STRIDE),
        (dict(strides=(1 << 40,)), tensor_maps.BAD_STRIDE),
        (dict(strides=(-16,)), tensor_maps.BAD_STRIDE),
        (dict(box=(64, 0)), tensor_maps.BAD_BOX),
        (dict(box=(64, 257)), tensor_maps.BAD_BOX),
        (dict(box=(63, 8)), tensor_maps.BAD_BOX_ROW),
        (dict(box=(72, 8)), tensor_maps.WIDE_BOX_ROW),
        (dict(box=(32, 8)), tensor_maps.NARROW_BOX_ROW),
        (dict(swizzle=32), tensor_maps.WIDE_BOX_ROW),
        (dict(swizzle=96), tensor_maps.BAD_SWIZZLE),
        (dict(element_strides=(1, 9)), tensor_maps.BAD_ELEMENT_STRIDE),
        (dict(element_strides=(0, 1)), tensor_maps.BAD_ELEMENT_STRIDE),
        (dict(interleave=1), tensor_maps.BAD_INTERLEAVE),
        (dict(fill=2), tensor_maps.BAD_FILL),
        (dict(fill=1, element_type=tensor_maps.U16), tensor_maps.BAD_FILL),
        (dict(shape=(64,) * 6), tensor_maps.BAD_RANK),
        (dict(shape=()), tensor_maps.BAD_RANK),
    ),
)
def test_what_the_driver_refuses_is_refused_in_a_line(change, code):
    assert tensor_maps.encode(**GOOD)
    with pytest.raises(ValueError) as raised:
        tensor_maps.encode(**GOOD | change)
    assert tensor_maps.REASONS[code] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_lists_of_other_lengths_are_refused():
    for change in (dict(strides=()), dict(box=(64,)), dict(element_strides=(1,))):
        with pytest.raises(ValueError, match="for rank 2"):
            tensor_maps.encode(**GOOD | change)


def test_the_drivers_element_types():
    names = "U8 U16 U32 S32 U64 S64 F16 F32 F64 BF16 F32_FTZ TF32 TF32_FTZ".split()
    numbers = tuple(getattr(tensor_maps, name) for name in names)
    assert tensor_maps.ELEMENT_TYPES_OF_DRIVER == numbers
    assert tensor_maps.BF16 == 10 and tensor_maps.F64 == 9 and tensor_maps.TF32 == 11


REDUCED = {
    tensor_maps.U32: torch.uint32,
    tensor_maps.S32: torch.int32,
    tensor_maps.U64: torch.uint64,
    tensor_maps.S64: torch.int64,
    tensor_maps.F16: torch.float16,
    tensor_maps.BF16: torch.bfloat16,
    tensor_maps.F32: torch.float32,
}
INTEGERS = {
    "add": lambda old, new: old + new,
    "min": min,
    "max": max,
    "inc": lambda old, new: 0 if old >= new else old + 1,
    "dec": lambda old, new: new if old == 0 or old > new else old - 1,
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
}
KNOWN = {
    *((name, tensor_maps.U32) for name in INTEGERS),
    *itertools.product(
        ("add", "min", "max", "and", "or", "xor"),
        (tensor_maps.S32, tensor_maps.U64, tensor_maps.S64),
    ),
    *itertools.product(("add", "min", "max"), (tensor_maps.F16, tensor_maps.BF16)),
    ("add", tensor_maps.F32),
}


@pytest.mark.parametrize("element_type", REDUCED)
@pytest.mark.parametrize("name", INTEGERS)
def test_reductions(name, element_type):
    dtype = REDUCED[element_type]
    random = np.random.default_rng(element_type)
    size = dtype.itemsize
    bits = np.uint16 if size == 2 else ELEMENTS[size][0]
    old, new = allocate((6, 40), bits), allocate((4, 128 // size), bits, seed=1)
    if dtype.is_floating_point:
        for array in (old, new):
            numbers = torch.from_numpy(random.standard_normal(array.shape)).to(dtype)
            array[...] = numbers.view(torch.uint8).numpy().view(bits)
    else:
        new[:, ::3] = old[:4, : new.shape[1] : 3]
    shared = place(raw_bytes(new, bits), 1024, 128)
    tensor_map = map_of(old, new.shape, element_type=element_type, swizzle=128)
    corner, before = (4, 5), old.copy()
    known = tensor_maps.reduce_box(
        tensor_maps.REDUCTIONS[name], tensor_map, coordinates_of(corner), shared, 1024
    )
    assert known == ((name, element_type) in KNOWN)
    if not known:
        np.testing.assert_array_equal(old, before)
        return
    width = min(new.shape[1], 35)
    left, right = before[4:, 5 : 5 + width].copy(), new[:2, :width].copy()
    expected = before.copy()
    expected[4:, 5 : 5 + width] = combine(name, dtype, left, right)
    np.testing.assert_array_equal(old, expected)


def combine(name, dtype, left, right):
    """The bits of an operation on the bits of two arrays of elements."""
    if dtype.is_floating_point:
        old, new = (
            torch.from_numpy(x.view(np.int16 if x.itemsize == 2 else np.int32))
            .view(dtype)
            .double()
            for x in (left, np.ascontiguousarray(right))
        )
        operation = {"add": torch.add, "min": torch.minimum, "max": torch.maximum}
        result = operation[name](old, new).to(dtype)
        return result.view(torch.uint8).numpy().view(left.dtype)
    signed = dtype in (torch.int32, torch.int64)
    kind = f"i{left.itemsize}" if signed else left.dtype
    width = 8 * left.itemsize
    pairs = zip(left.view(kind).ravel().tolist(), right.view(kind).ravel().tolist())
    results = [INTEGERS[name](old, new) & (1 << width) - 1 for old, new in pairs]
    return np.array(results, left.dtype).reshape(left.shape)
