"""Integers of several words: sums, differences and products with carries."""

import random

import numpy as np
import pytest

from batchline.tests.emulated import buffer, run

MASK = (1 << 128) - 1
EDGES = (0, 1, 2**32 - 1, 2**32, 2**64 - 1, 2**64, 2**127, MASK)


def numbers(seed):
    drawn = random.Random(seed)
    return [*EDGES, *(drawn.getrandbits(128) for _ in range(32 - len(EDGES)))]


def words_of(values, count=4):
    """uint32[32 * count]: the lanes' words, lowest first."""
    words = [
        value >> (32 * place) & 0xFFFFFFFF for value in values for place in range(count)
    ]
    return np.array(words, np.uint32)


def computed(body, left, right, outputs=4):
    """The numbers that a kernel writes from the words in %r0.. and %r4.., as %r8.."""
    arrays = [buffer(128) for _ in range(3)]
    arrays[0][:], arrays[1][:] = words_of(left), words_of(right)
    text = f"""
    shl.b32 %r20, %l, 4;
    cvt.u64.u32 %d0, %r20;
    add.u64 %d1, %a0, %d0;
    add.u64 %d2, %a1, %d0;
    add.u64 %d3, %a2, %d0;
    ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%d1];
    ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d2];
    {body}
    st.global.v4.u32 [%d3], {{%r8, %r9, %r10, %r11}};
    """
    done = run(text, *arrays)
    assert not done.findings
    rows = arrays[2].reshape(32, 4)[:, :outputs]
    return [sum(int(word) << (32 * i) for i, word in enumerate(row)) for row in rows]


LEFT, RIGHT = numbers(1), numbers(2)[::-1]


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_a_sum_of_four_words(kind):
    body = f"""
    add.cc.{kind} %r8, %r0, %r4;
    addc.cc.{kind} %r9, %r1, %r5;
    addc.cc.{kind} %r10, %r2, %r6;
    addc.{kind} %r11, %r3, %r7;
    """
    wanted = [(a + b) & MASK for a, b in zip(LEFT, RIGHT)]
    assert computed(body, LEFT, RIGHT) == wanted


def test_a_difference_of_four_words():
    body = """
    sub.cc.u32 %r8, %r0, %r4;
    subc.cc.u32 %r9, %r1, %r5;
    subc.cc.u32 %r10, %r2, %r6;
    subc.u32 %r11, %r3, %r7;
    """
    wanted = [(a - b) & MASK for a, b in zip(LEFT, RIGHT)]
    assert computed(body, LEFT, RIGHT) == wanted


def test_a_sum_of_two_words_of_64_bits():
    pairs = zip(("%d4", "%d5", "%d6", "%d7"), ("0,%r1", "2,%r3", "4,%r5", "6,%r7"))
    body = "\n".join(f"mov.b64 {to}, {{%r{given}}};" for to, given in pairs)
    body += """
    add.cc.u64 %d8, %d4, %d6;
    addc.u64 %d9, %d5, %d7;
    mov.b64 {%r8, %r9}, %d8;
    mov.b64 {%r10, %r11}, %d9;
    """
    wanted = [(a + b) & MASK for a, b in zip(LEFT, RIGHT)]
    assert computed(body, LEFT, RIGHT) == wanted


def test_a_product_of_two_words_by_two():
    body = """
    mul.lo.u32 %r8, %r0, %r4;
    mul.hi.u32 %r9, %r0, %r4;
    mad.lo.cc.u32 %r9, %r0, %r5, %r9;
    madc.hi.u32 %r10, %r0, %r5, 0;
    mad.lo.cc.u32 %r9, %r1, %r4, %r9;
    madc.hi.cc.u32 %r10, %r1, %r4, %r10;
    addc.u32 %r11, 0, 0;
    mad.lo.cc.u32 %r10, %r1, %r5, %r10;
    madc.hi.u32 %r11, %r1, %r5, %r11;
    """
    low = (1 << 64) - 1
    wanted = [(a & low) * (b & low) for a, b in zip(LEFT, RIGHT)]
    assert computed(body, LEFT, RIGHT) == wanted


def test_lanes_that_are_held_back_keep_their_carry():
    body = """
    add.cc.u32 %r8, 0xFFFFFFFF, 1;
    setp.lt.u32 %p0, %l, 16;
    @%p0 add.cc.u32 %r8, 0, 0;
    addc.u32 %r8, 0, 0;
    """
    wanted = [0] * 16 + [1] * 16
    assert computed(body, LEFT, RIGHT, outputs=1) == wanted
