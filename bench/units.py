"""Numbers for people: three significant digits and a unit."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """1.23 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


def clock(seconds: float) -> str:
    """ "4 min 58 s", or "58 s" below a minute."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(count: float) -> str:
    """4.00 MiB."""
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= step:
            return f"{_three_digits(count / step)} {unit}"
    return f"{count:.0f} B"


def ratio(value: float) -> str:
    """1.23x."""
    return f"{_three_digits(value)}x"


def change(share: float) -> str:
    """+12.3%, always with its sign; no decimals from 100% on."""
    text = f"{share:+.0%}" if abs(share) >= 0.9995 else f"{share:+.1%}"
    return "+0.0%" if text == "-0.0%" else text


def _three_digits(value: float) -> str:
    if 0 < value < 0.005:  # which two decimals would call nothing
        return f"{value:.2g}"
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
