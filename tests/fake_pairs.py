"""Pairs of processes that are none: what each case takes on a side is a function of the
pair's number.
"""

import math

from batchline.bench.measure.worker.task import Outcome
from batchline.bench.regress.pairs import Compared
from batchline.bench.statuses import MEASURED


def measured(error=0.1, peak_bytes=2**20):
    return Outcome(
        MEASURED, facts={"peak_bytes": peak_bytes, "error_of_tolerance": error}
    )


class FakePairs:
    """`ratios`: label → (number → head over base, or an Outcome that head ends with, or
    an error to raise).
    """

    baselines = {"bmm": "torch_bmm", "grad_reduce": "torch_mean"}

    def __init__(self, ratios, plans=({}, {}), first=None):
        self.ratios, self._plans, self._first = ratios, plans, first or {}
        self.asked, self.checked, self.states = [], [], []

    def plans(self):
        if isinstance(self._plans, Exception):
            raise self._plans
        return self._plans

    def first(self, side, entries):
        self.checked.append((side, [entry.label for entry in entries]))
        return {
            entry.label: self._first.get((side, entry.label), measured())
            for entry in entries
        }

    def pair(self, entries, number):
        self.asked.append([entry.label for entry in entries])
        return {
            entry.label: self._compared(self.ratios[entry.label](number))
            for entry in entries
        }

    @staticmethod
    def _compared(what):
        if isinstance(what, BaseException):
            raise what
        if isinstance(what, Outcome):
            return Compared(measured(), what)
        return Compared(measured(), measured(), 1e-3, 1e-3 * what, math.log(what))


def wobbling(change, by=0.001):
    """Head over base: 1 + change, give or take a little from pair to pair."""
    return lambda number: (1 + change) * (1 + by * (-1) ** number)
