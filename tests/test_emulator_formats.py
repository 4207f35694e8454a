"""Every bit pattern of the narrow number formats against PyTorch's own conversions, and
numbers between them against a search among all that the format has.
"""

import numpy as np
import pytest
import torch

from batchline.bench.measure.emulator import number_formats as formats

DECODERS = {
    torch.float16: formats.decode_f16,
    torch.bfloat16: formats.decode_bf16,
    torch.float8_e4m3fn: formats.decode_e4m3,
    torch.float8_e5m2: formats.decode_e5m2,
}
ENCODERS = {
    torch.float16: formats.encode_f16,
    torch.bfloat16: formats.encode_bf16,
    torch.float8_e4m3fn: formats.encode_e4m3,
    torch.float8_e5m2: formats.encode_e5m2,
}
CANONICAL_NANS = {
    torch.float16: 0x7FFF,
    torch.bfloat16: 0x7FFF,
    torch.float8_e4m3fn: 0x7F,
    torch.float8_e5m2: 0x7F,
}
DTYPES = tuple(DECODERS)


def all_patterns(dtype):
    """Every bit pattern of `dtype`, and the float32 that PyTorch says it is."""
    width = 8 * dtype.itemsize
    codes = np.arange(1 << width, dtype=np.uint16 if width == 16 else np.uint8)
    values = torch.from_numpy(codes).view(dtype).to(torch.float32).numpy()
    return codes, values


def sample_float32():
    """Random float32 bit patterns, and magnitudes that the narrow formats have."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    scales = np.exp2(random.uniform(-30, 20, 20_000))
    near = (random.standard_normal(20_000) * scales).astype(np.float32)
    edges = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 65519.9, 65520, 448, 464])
    return np.concatenate([bits.view(np.float32), near, edges, -edges])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pattern_decodes_to_pytorchs_number(dtype):
    codes, values = all_patterns(dtype)
    decoded = np.array([DECODERS[dtype](code) for code in codes], np.float32)
    numbers = ~np.isnan(values)
    assert (np.isnan(decoded) == ~numbers).all()
    assert (decoded.view(np.uint32) == values.view(np.uint32))[numbers].all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_a_format_encodes_to_itself_in_every_rounding(dtype):
    codes, values = all_patterns(dtype)
    for code, value in zip(codes, values):
        expected = CANONICAL_NANS[dtype] if np.isnan(value) else code
        for rounding in range(3):
            assert ENCODERS[dtype](float(value), rounding, False) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_even_neighbour_and_other_roundings_where_they_say(dtype):
    codes, values = all_patterns(dtype)
    positive = np.isfinite(values) & ~np.signbit(values)
    codes = codes[positive].astype(int)
    values = values[positive].astype(np.float64)
    assert (np.diff(values) > 0).all()
    encode = ENCODERS[dtype]
    for code, low, high in zip(codes, values[:-1], values[1:]):
        middle = (low + high) / 2
        even = code + code % 2
        for sign, value in ((0, middle), (1 << (8 * dtype.itemsize - 1), -middle)):
            assert encode(value, formats.TO_NEAREST_EVEN, False) == sign | even
            assert encode(value, formats.TO_NEAREST_AWAY, False) == sign | code + 1
            assert encode(value, formats.TOWARDS_ZERO, False) == sign | code
        below, above = np.nextafter(middle, low), np.nextafter(middle, high)
        assert encode(below, formats.TO_NEAREST_EVEN, False) == code
        assert encode(above, formats.TO_NEAREST_EVEN, False) == code + 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float32_rounds_to_nearest_even_as_in_pytorch(dtype):
    values = sample_float32()
    expected = torch.from_numpy(values).to(dtype).to(torch.float32).numpy()
    largest = torch.finfo(dtype).max
    encoded = [ENCODERS[dtype](float(value), 0, False) for value in values]
    decoded = np.array([DECODERS[dtype](code) for code in encoded], np.float32)
    if dtype == torch.float8_e4m3fn:
        # PyTorch may saturate here; what is out of range is tested below
        inside = np.abs(values) < 464
        values, decoded, expected = values[inside], decoded[inside], expected[inside]
    np.testing.assert_array_equal(decoded, expected)
    assert np.nanmax(np.abs(decoded[np.isfinite(decoded)])) <= largest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_satfinite_clamps_what_is_out_of_range_and_keeps_nan(dtype):
    largest = torch.finfo(dtype).max
    encode, decode = ENCODERS[dtype], DECODERS[dtype]
    for value in (largest * 1.001, largest * 2, 1e300, np.inf):
        assert decode(encode(value, 0, True)) == largest
        assert decode(encode(-value, 0, True)) == -largest
    assert encode(np.nan, 0, True) == CANONICAL_NANS[dtype]
    if dtype == torch.float8_e4m3fn:
        assert encode(np.inf, 0, False) == 0x7F
        assert encode(-1e9, 0, False) == 0xFF
    else:
        assert decode(encode(1e300, 0, False)) == np.inf
    assert decode(encode(1e300, formats.TOWARDS_ZERO, False)) == largest


def test_float64_is_rounded_once():
    # through float32 this would become a tie and go down to 1
    value = 1 + 2.0**-11 + 2.0**-40
    assert formats.encode_f16(value, 0, False) == 0x3C01
    assert formats.encode_f16(5e-324, 0, False) == 0
    assert formats.encode_f16(-(2.0**-25), 0, False) == 0x8000
    assert formats.encode_f16(-(2.0**-25) * 1.001, 0, False) == 0x8001


def test_tf32_rounds_at_bit_13():
    random = np.random.default_rng(1)
    bits = random.integers(0, 0x7F7FFFFF, 20_000, dtype=np.uint32)
    bits[:4] = 0x3F801000, 0x3F803000, 0x3F801001, 0x00001000
    for pattern, value in zip(bits.astype(int), bits.view(np.float32).astype(float)):
        low, rest = pattern & ~0x1FFF, pattern & 0x1FFF
        up = low + 0x2000
        even = up if rest > 0x1000 or rest == 0x1000 and low & 0x2000 else low
        assert formats.encode_tf32(value, formats.TO_NEAREST_EVEN, False) == even
        away = up if rest >= 0x1000 else low
        assert formats.encode_tf32(value, formats.TO_NEAREST_AWAY, False) == away
        assert formats.encode_tf32(value, formats.TOWARDS_ZERO, False) == low
    assert formats.encode_tf32(np.nan, 0, False) == 0x7FFFFFFF
    assert formats.encode_tf32(1e39, 0, True) == 0x7F7FE000
    assert formats.decode_tf32(0x3F801FFF) == 1.0
