"""A CUDA graph that can't be captured: what torch leaves behind then stays in no
process that goes on.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from batchline.bench.measure.timing.clocks import Cuda
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.statuses import MEASURED, NOT_CAPTURED


@pytest.fixture
def streams(monkeypatch):
    """torch's streams and graphs, as torch.cuda.graph treats them: its end may fail,
    and then its stream stays.
    """
    state = SimpleNamespace(current="the user's", ends=True)

    @contextlib.contextmanager
    def graph(one):
        before, state.current = state.current, "the capture's"
        try:
            yield
        finally:
            if not state.ends:
                raise RuntimeError(
                    "operation failed due to a previous error during capture"
                )
            state.current = before

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: state.current)
    monkeypatch.setattr(
        torch.cuda, "set_stream", lambda stream: setattr(state, "current", stream)
    )
    monkeypatch.setattr(
        torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None)
    )
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return state


def test_a_capture_that_fails_leaves_the_current_stream_what_it_was(streams):
    launches = []
    assert callable(Cuda.capture(None, lambda: launches.append(streams.current), 3))
    assert launches == ["the capture's"] * 3 and streams.current == "the user's"
    streams.ends = False
    with pytest.raises(RuntimeError, match="previous error during capture"):
        Cuda.capture(None, lambda: None, 1)
    assert streams.current == "the user's"


@pytest.mark.parametrize(
    "why_not, renewed",
    [(f"{NOT_CAPTURED}: RuntimeError: no", 1), ("device_hot: too slow", 0)],
)
def test_a_worker_whose_capture_failed_measures_nothing_else(why_not, renewed):
    renewals = []
    one = SimpleNamespace(
        _blame=SimpleNamespace(
            measure=lambda task: {
                "good": Outcome(
                    MEASURED, facts={"clocks": {"device_cold": {"median_s": 1e-6}}}
                ),
                "other": Outcome(
                    MEASURED, facts={"clocks": {"graph": {"why_not": why_not}}}
                ),
            }
        ),
        renew=lambda: renewals.append(True),
    )
    assert (
        set(Isolation.measure(one, None)) == {"good", "other"}
        and len(renewals) == renewed
    )
