"""The narrow number formats of the tensor cores: f16, bf16, tf32, e4m3 and e5m2, as bit
patterns in an unsigned integer, to and from binary floating point.

Decoding is exact. Encoding rounds a float64 once, so that a float32 operand (which a
float64 holds exactly) and a float64 sum are both rounded without an intermediate step.
A NaN is encoded as the format's canonical NaN, whatever its payload: PTX ISA gives
0x7fff for f16 and bf16, 0x7fffffff for tf32 and 0x7f for e4m3 and e5m2. e4m3 has no
infinity; its largest number is 448, and 0x7f and 0xff are its NaNs. With `.satfinite`
infinities and numbers out of range become the largest finite number of the same sign.
"""

from __future__ import annotations

import numpy as np

from batchline.bench.measure.emulator.native import (
    compile_for_python,
    compile_native,
)

TO_NEAREST_EVEN = 0
TOWARDS_ZERO = 1
TO_NEAREST_AWAY = 2


@compile_native
def encode_magnitude(value, exponent_bits, mantissa_bits, rounding):
    """The code of |value| in a format with a sign, `exponent_bits` and `mantissa_bits`,
    with subnormal numbers and the exponent's bias 2**(exponent_bits - 1) - 1.

    `value` is a finite float64. The exponent isn't limited above: a number out of range
    has a code as large as that of infinity, or larger. Returns an int64.
    """
    bits = np.int64(np.float64(value).view(np.int64)) & np.int64(0x7FFFFFFFFFFFFFFF)
    smallest_exponent = 2 - (1 << (exponent_bits - 1))
    exponent = (bits >> 52) - 1023
    mantissa = (bits & ((1 << 52) - 1)) | (1 << 52)
    shift = 52 - mantissa_bits
    if exponent < smallest_exponent:
        shift = min(shift + smallest_exponent - exponent, 62)
    code = mantissa >> shift
    rest = mantissa & ((np.int64(1) << shift) - 1)
    half = np.int64(1) << (shift - 1)
    if rounding == TO_NEAREST_EVEN:
        code += np.int64(rest > half or (rest == half and code & 1 == 1))
    elif rounding == TO_NEAREST_AWAY:
        code += np.int64(rest >= half)
    if exponent >= smallest_exponent:
        code += (exponent - smallest_exponent) << mantissa_bits
    return code


@compile_native
def encode(value, exponent_bits, mantissa_bits, rounding, saturate):
    """The bit pattern, a uint32, of a float64 in an IEEE-like format with infinities.

    Rounding towards zero never makes an infinity of a finite number.
    """
    infinity = np.int64((1 << exponent_bits) - 1) << mantissa_bits
    if np.isnan(value):
        return np.uint32((np.int64(1) << (exponent_bits + mantissa_bits)) - 1)
    sign = np.int64(np.signbit(value)) << (exponent_bits + mantissa_bits)
    if np.isinf(value):
        code = infinity
    else:
        code = encode_magnitude(value, exponent_bits, mantissa_bits, rounding)
        code = min(code, infinity - np.int64(rounding == TOWARDS_ZERO))
    if saturate:
        code = min(code, infinity - 1)
    return np.uint32(sign | code)


@compile_for_python
def encode_f16(value, rounding, saturate):
    """The f16 bit pattern, in a uint32, of a float64."""
    return encode(value, 5, 10, rounding, saturate)


@compile_for_python
def encode_bf16(value, rounding, saturate):
    """The bf16 bit pattern, in a uint32, of a float64."""
    return encode(value, 8, 7, rounding, saturate)


@compile_for_python
def encode_tf32(value, rounding, saturate):
    """The tf32 bit pattern of a float64: that of a float32 whose low 13 bits are 0, but
    for the canonical NaN 0x7fffffff.
    """
    if np.isnan(value):
        return np.uint32(0x7FFFFFFF)
    return np.uint32(encode(value, 8, 10, rounding, saturate) << np.uint32(13))


@compile_for_python
def encode_e5m2(value, rounding, saturate):
    """The e5m2 bit pattern, in a uint32, of a float64. PTX always saturates."""
    return encode(value, 5, 2, rounding, saturate)


@compile_for_python
def encode_e4m3(value, rounding, saturate):
    """The e4m3 bit pattern, in a uint32, of a float64. PTX always saturates; without it
    what is out of range is a NaN of the same sign, as the format has no infinity.
    """
    if np.isnan(value):
        return np.uint32(0x7F)
    sign = np.int64(np.signbit(value)) << 7
    code = np.int64(0x7F)
    if not np.isinf(value):
        code = min(code, encode_magnitude(value, 4, 3, rounding))
        if rounding == TOWARDS_ZERO:
            code = min(code, np.int64(0x7E))
    if saturate:
        code = min(code, np.int64(0x7E))
    return np.uint32(sign | code)


@compile_for_python
def decode_f16(bits):
    """The float32 of an f16 bit pattern (an unsigned integer; bits above 15 ignored)."""
    bits = np.uint32(bits)
    magnitude = np.uint32(bits & np.uint32(0x7FFF)) << np.uint32(13)
    # 2**112 moves the exponent from f16's bias to float32's, subnormal numbers included
    scaled = np.uint32(magnitude).view(np.float32) * np.float32(2.0**112)
    code = np.float32(scaled).view(np.uint32)
    if magnitude >= np.uint32(0x7C00 << 13):
        code = magnitude | np.uint32(0x7F800000)
    sign = np.uint32(bits & np.uint32(0x8000)) << np.uint32(16)
    return np.uint32(sign | code).view(np.float32)


@compile_for_python
def decode_bf16(bits):
    """The float32 of a bf16 bit pattern (bits above 15 ignored)."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@compile_for_python
def decode_tf32(bits):
    """The float32 of a tf32 bit pattern: the low 13 bits are ignored."""
    return np.uint32(np.uint32(bits) & np.uint32(0xFFFFE000)).view(np.float32)


@compile_for_python
def decode_e5m2(bits):
    """The float32 of an e5m2 bit pattern (bits above 7 ignored)."""
    return decode_f16(np.uint32(np.uint32(bits) & np.uint32(0xFF)) << np.uint32(8))


@compile_for_python
def decode_e4m3(bits):
    """The float32 of an e4m3 bit pattern (bits above 7 ignored)."""
    bits = np.uint32(bits)
    magnitude = np.uint32(bits & np.uint32(0x7F)) << np.uint32(20)
    scaled = np.uint32(magnitude).view(np.float32) * np.float32(2.0**120)
    code = np.float32(scaled).view(np.uint32)
    if magnitude == np.uint32(0x7F << 20):
        code = np.uint32(0x7FC00000)
    sign = np.uint32(bits & np.uint32(0x80)) << np.uint32(24)
    return np.uint32(sign | code).view(np.float32)


@compile_for_python
def decode_e8m0(bits):
    """The float64 of an e8m0 bit pattern (bits above 7 ignored): 2 ** (bits - 127), or
    NaN for 255.
    """
    code = np.int64(bits) & 0xFF
    if code == 255:
        return np.nan
    return np.int64((code - 127 + 1023) << 52).view(np.float64)
