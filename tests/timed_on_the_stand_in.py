"""What is timed on the stand-in for a GPU. tests/test_stand_in.py runs this in a
process that has it.
"""

import gc

import pytest
import torch

from batchline.bench import units
from batchline.bench.measure.machine import state
from batchline.bench.measure.stand_in.timeline import BOOST_MHZ, BYTES_PER_S, CAPPED_MHZ
from batchline.bench.measure.timing import ceilings, clocks
from batchline.bench.measure.timing.clocks import make_clock
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker import runner
from batchline.bench.measure.worker.task import Task
from batchline.bench.statuses import MEASURED

OUTPUT_BYTES = 1024 * 16 * 16 * 2


def measured(
    clock,
    labels="abcde",
    batch=1024,
    variant="torch_bmm",
    scenario="tiny_16",
    **settings,
):
    """The outcomes of products of one variant under several names, each of OUTPUT_BYTES
    at first, by label.
    """
    effort = Effort(precision=0.5, seconds=0.01, least=4)
    task = Task(
        "bmm",
        scenario,
        "float16",
        batch,
        tuple((label, variant) for label in labels),
        (clock,),
        effort,
        effort,
        warm_up_s=0.0,
        probes=False,
        **settings,
    )
    return runner.Runner("cuda").measure(task)


def peak_and_left(work):
    """Bytes that the device has given out while `work` is done, and that are in use
    after it, above those before.
    """
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, used_before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    gc.disable()  # or when it runs is chance
    try:
        work()
        return (
            torch.cuda.max_memory_reserved() - before,
            torch.cuda.memory_allocated() - used_before,
        )
    finally:
        gc.enable()


@pytest.mark.parametrize("most_kept_bytes, is_alone", [(2**32, False), (2**18, True)])
def test_graphs_that_would_keep_much_memory_live_one_after_another(
    monkeypatch, most_kept_bytes, is_alone
):
    monkeypatch.setattr(runner, "_MOST_KEPT_BYTES", most_kept_bytes)
    outcomes = {}
    one, one_left = peak_and_left(lambda: measured("graph", "a"))
    several, left = peak_and_left(lambda: outcomes.update(measured("graph")))
    assert {outcome.status for outcome in outcomes.values()} == {MEASURED}
    reasons = {
        outcome.facts["clocks"]["graph"].get("alone") for outcome in outcomes.values()
    }
    if is_alone:
        assert reasons == {
            "sampled alone, one after another: the graphs of all 5 together would keep "
            f"{units.size(5 * OUTPUT_BYTES)}"
        }
        assert several < one + 2 * OUTPUT_BYTES
        assert (
            left < one_left
        )  # for one alone is released when its garbage is collected
    else:
        assert reasons == {None} and several > one + 3 * OUTPUT_BYTES


def test_a_clock_that_keeps_no_memory_is_sampled_in_turns(monkeypatch):
    monkeypatch.setattr(runner, "_MOST_KEPT_BYTES", 0)
    outcomes = measured("device_cold", "ab")
    assert all(
        "alone" not in outcome.facts["clocks"]["device_cold"]
        for outcome in outcomes.values()
    )


def rate_of(clock, launch, nbytes):
    """Bytes per second, once the launch is warm, by the fastest of four samples."""
    launch()
    torch.cuda.synchronize()
    clock = make_clock(clock, clocks.hardware("cuda"), [launch], 1e-3, 1e-3)
    return nbytes / min(clock.sample() for _ in range(4))


def test_no_gap_between_launches_is_in_the_rate_of_the_cache(monkeypatch):
    cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    walks = ceilings._cache_rates("cuda", cache_bytes, rate_of)
    assert len(walks) == 2 and all(rate > 0.93 * BYTES_PER_S for rate in walks)
    monkeypatch.setattr(ceilings, "why_no_cache_walk", lambda: "no Triton")
    ways = ceilings._cache_rates("cuda", cache_bytes, lambda *how: how)
    assert {clock for clock, _, _ in ways} == {"graph"}
    for _, launch, nbytes in ways:
        assert rate_of("device_hot", launch, nbytes) < 0.86 * BYTES_PER_S


def test_where_triton_compiles_nothing_the_cache_has_its_ceiling_by_torch(monkeypatch):
    def fail(*sizes):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(ceilings, "reading", fail)
    assert {
        clock for clock, _, _ in ceilings._cache_rates("cuda", 2**22, lambda *how: how)
    } == {"graph"}


def test_a_walk_moves_as_many_bytes_as_it_says():
    for make in (ceilings.reading, ceilings.copying):
        launch, nbytes = make(2**20, 2**22)
        launch().fill_(float("nan"))
        result = launch()
        torch.cuda.synchronize()
        assert nbytes >= 2**22 and not result.isnan().any()
    launch, nbytes = ceilings.reading(2**20, 2**22)
    assert float(launch().sum()) == nbytes / 4  # of ones


def test_a_power_cap_that_a_lasting_load_brings_on_is_in_the_sustained_time_alone():
    torch.cuda._sleep(2_000_000_000)  # so that it has cooled down
    outcome = measured(
        "device_cold",
        "a",
        batch=100,
        variant="triton_naive",
        scenario="tiny_4",
        sustained_s=1.0,
    )["a"]
    assert outcome.status == MEASURED
    sustained, after = outcome.facts["sustained"], outcome.facts["state"]["after"]
    short_s = outcome.facts["clocks"]["device_cold"]["median_s"]
    assert max(after["sm_mhz_seen"]) == BOOST_MHZ and sustained["sm_mhz"] == CAPPED_MHZ
    assert sustained["power_w"] == 700 and sustained["seconds"] > 1
    assert sustained["median_s"] > 1.3 * short_s


def test_a_small_product_is_timed_in_turns_alone(monkeypatch):
    outcome = measured("device_cold", "a", batch=1, sustained_s=1.0)["a"]
    assert outcome.status == MEASURED and "sustained" not in outcome.facts
    outcome = measured("device_cold", "a")["a"]
    assert outcome.status == MEASURED and "sustained" not in outcome.facts


def test_a_power_cap_throttles_nothing_and_is_seen():
    a = torch.ones(64, 64, device="cuda")
    for _ in range(500):
        torch.mm(a, a)
    torch.cuda.synchronize()
    read = state.state_of("cuda")
    assert read.why_throttled() is None
    seen = read.read()
    assert (
        seen["throttled"] == ["power cap"]
        and seen["power_cap_seen"]
        and seen["sm_mhz_seen"] == [CAPPED_MHZ] * 2
    )
