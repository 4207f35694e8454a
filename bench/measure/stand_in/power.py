"""How warm each device is: under products for a while, its power cap lowers its clock,
as an H200's does.
"""

from __future__ import annotations

import math
from collections import defaultdict

BOOST_MHZ, CAPPED_MHZ = 1980, 1440
_SPAN_S = 0.1  # over which a cap looks at the load
_MOST_LOAD = 0.6  # of that span in products


class Power:
    """The share of the last while that one device has spent on products."""

    def __init__(self):
        self._load = 0.0
        self._until_s = 0.0

    def add(self, start_s: float, seconds: float, is_product: bool) -> float:
        """Count work of so many seconds at the boost clock; returns how many it takes
        at the present one.
        """
        self._load = self._load_at(start_s)
        taken_s = seconds * BOOST_MHZ / self._mhz(self._load) if is_product else seconds
        left = math.exp(-taken_s / _SPAN_S)
        self._load = self._load * left + (1 - left) * is_product
        self._until_s = start_s + taken_s
        return taken_s

    def mhz(self, now_s: float) -> int:
        return self._mhz(self._load_at(now_s))

    def _load_at(self, now_s: float) -> float:
        return self._load * math.exp(-max(0.0, now_s - self._until_s) / _SPAN_S)

    @staticmethod
    def _mhz(load: float) -> int:
        return CAPPED_MHZ if load > _MOST_LOAD else BOOST_MHZ


POWERS: defaultdict[int, Power] = defaultdict(Power)  # by the device's index
