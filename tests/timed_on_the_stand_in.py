"""What is timed on the stand-in for a GPU. tests/test_stand_in.py runs this in a process that has it."""
import gc

import pytest
import torch

from bench import units
from bench.measure import runner
from bench.measure.sampling import Effort
from bench.measure.task import Task
from bench.records import MEASURED

OUTPUT_BYTES = 1024 * 16 * 16 * 2


def measured(clock, labels="abcde", **settings):
    """The outcomes of products of one variant under several names, each of OUTPUT_BYTES, by label."""
    effort = Effort(precision=0.5, seconds=0.01, least=4)
    task = Task("bmm", "tiny_16", "float16", 1024, tuple((label, "torch_bmm") for label in labels), (clock,), effort,
                effort, warm_up_s=0.0, probes=False, **settings)
    return runner.Runner("cuda").measure(task)


def peak_reserved(work):
    """Bytes that the device has given out at most while `work` is done, above those before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    work()
    return torch.cuda.max_memory_reserved() - before


@pytest.mark.parametrize("most_kept_bytes, is_alone", [(2 ** 32, False), (2 ** 18, True)])
def test_graphs_that_would_keep_much_memory_live_one_after_another(monkeypatch, most_kept_bytes, is_alone):
    monkeypatch.setattr(runner, "_MOST_KEPT_BYTES", most_kept_bytes)
    outcomes = {}
    one = peak_reserved(lambda: measured("graph", "a"))
    several = peak_reserved(lambda: outcomes.update(measured("graph")))
    assert {outcome.status for outcome in outcomes.values()} == {MEASURED}
    reasons = {outcome.facts["clocks"]["graph"].get("alone") for outcome in outcomes.values()}
    if is_alone:
        assert reasons == {"sampled alone, one after another: the graphs of all 5 together would keep "
                           f"{units.size(5 * OUTPUT_BYTES)}"}
        assert several < one + 2 * OUTPUT_BYTES
    else:
        assert reasons == {None} and several > one + 3 * OUTPUT_BYTES


def test_a_clock_that_keeps_no_memory_is_sampled_in_turns(monkeypatch):
    monkeypatch.setattr(runner, "_MOST_KEPT_BYTES", 0)
    outcomes = measured("device_cold", "ab")
    assert all("alone" not in outcome.facts["clocks"]["device_cold"] for outcome in outcomes.values())
