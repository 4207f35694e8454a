"""Is a call as quick on values that it has not seen? One that remembers results, by
whatever of its inputs, is not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from batchline.bench import units
from batchline.bench.measure.sampling import Samples
from batchline.bench.measure.values import SECRET, Values
from batchline.bench.statuses import WRONG, NotMeasured

_LONGEST_S = 5e-3  # a longer call has a turn of few calls, on new values each time
_SHORT_S = 3e-4
_PAIRS, _FEW_PAIRS = 6, 2
_MORE_PAIRS = (
    8,
    12,
    12,
)  # of looks that all must agree, where the first one gives reason to
_SLOWER = 1.5
_MOSTLY = 0.8  # of all pairs of a call on new values and one on old


def may_remember(samples: Samples) -> bool:
    """Whether the calls that turns began with, on new values, took longer than those
    after them, on the same ones.

    They do where the caches were another launch's, too: then `require_no_memory` tells.
    """
    return (
        samples.median_s < _LONGEST_S
        and samples.first_s is not None
        and samples.first_s > _SLOWER * samples.median_s
    )


def require_no_memory(
    launch: Callable[[], object], values: Values, call_s: float, hardware, where: str
) -> None:
    """Time calls after the same values were written again, and after new ones were.

    Raises:
        NotMeasured: WRONG if calls on new values take half as long again in the median,
            and four of five of them do, in each of three looks after a first one.
    """
    pairs = _PAIRS if call_s < _SHORT_S else _FEW_PAIRS

    def timed() -> float:
        hardware.synchronize()
        start_s = hardware.now_s()
        launch()
        hardware.synchronize()
        return hardware.now_s() - start_s

    seen_s, new_s = _pairs(timed, values, pairs)
    if not _ratio(new_s, seen_s) > _SLOWER:
        return
    for more in _MORE_PAIRS:
        seen_s, new_s = _pairs(timed, values, more)
        if not _is_slower(new_s, seen_s):
            return
    new, seen = (
        units.duration(statistics.median(times_s)) for times_s in (new_s, seen_s)
    )
    raise NotMeasured(
        WRONG,
        f"{where}: it remembers results: a call takes {new} on new values, and {seen} on values "
        "that it has seen",
    )


def _pairs(
    timed: Callable[[], float], values: Values, count: int
) -> tuple[list[float], list[float]]:
    """Seconds of `count` calls on values seen before, and of as many on new ones, in an
    order drawn at random.
    """
    seen_s, new_s = [], []
    kinds = [True, False] * count
    SECRET.shuffle(kinds)
    timed()
    for is_new in kinds:
        (values.renew if is_new else values.rewrite)()
        (new_s if is_new else seen_s).append(timed())
    return seen_s, new_s


def _is_slower(one_s: Sequence[float], other_s: Sequence[float]) -> bool:
    longer = sum(one > other for one in one_s for other in other_s)
    return _ratio(one_s, other_s) > _SLOWER and longer >= _MOSTLY * len(one_s) * len(
        other_s
    )


def _ratio(one_s: Sequence[float], other_s: Sequence[float]) -> float:
    return statistics.median(one_s) / max(statistics.median(other_s), 1e-12)
