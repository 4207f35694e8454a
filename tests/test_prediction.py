"""What is predicted from counts, by numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch

from batchline.bench.stats.datasheets import DATASHEETS
from batchline.bench.stats.prediction import (
    CAPTURED_MULTIPROCESSORS,
    FP32,
    ISSUE,
    L2,
    MEMORY,
    SHARED,
    TENSOR_CORES,
    CountedCall,
    LaunchCounts,
    part_times,
    predict,
)
from batchline.bench.verdicts.predicted import format_predictions, predictions
from batchline.kernels.target import multiprocessors

CHIPS = {chip.name: chip for chip in DATASHEETS}
H200 = CHIPS["H200"]
NOTHING = LaunchCounts(
    blocks=132,
    instructions=0,
    float_instructions=0,
    moves=0,
    sectors=0,
    passes=0,
    distinct_bytes=0,
    written_bytes=0,
    matrix_flops={},
    operand_bytes=0,
)
CYCLES = 132 * 1.98e9  # a second, of all multiprocessors


@pytest.mark.parametrize(
    "counts, part, seconds",
    [
        ({"distinct_bytes": 3_600_000, "written_bytes": 1_200_000}, MEMORY, 1e-6),
        ({"sectors": 2 * 10**6}, L2, 10**6 / CYCLES),
        ({"passes": 10**6}, SHARED, 10**6 / CYCLES),
        ({"passes": 10, "operand_bytes": 1280}, SHARED, 20 / CYCLES),
        ({"matrix_flops": {"bf16": 989_400_000}}, TENSOR_CORES, 1e-6),
        ({"matrix_flops": {"tf32": 989_400_000}}, TENSOR_CORES, 2e-6),
        ({"float_instructions": 4 * 10**6}, FP32, 10**6 / CYCLES),
        ({"instructions": 9 * 10**6, "moves": 10**6}, ISSUE, 2 * 10**6 / CYCLES),
    ],
)
def test_each_part_takes_its_work_over_its_rate(counts, part, seconds):
    times = part_times(replace(NOTHING, **counts), H200)
    assert times[part] == pytest.approx(seconds)
    others = [taken for name, taken in times.items() if name not in (part, ISSUE)]
    assert not any(others)


def test_the_multiprocessor_with_most_blocks_is_waited_for():
    work = {"passes": 10**6, "distinct_bytes": 10**6}
    even = part_times(replace(NOTHING, **work, blocks=2 * 132), H200)
    uneven = part_times(replace(NOTHING, **work, blocks=133), H200)
    assert uneven[SHARED] / even[SHARED] == pytest.approx(2 * 132 / 133)
    assert uneven[MEMORY] == even[MEMORY]


def test_a_grid_that_was_captured_for_132_follows_the_chip():
    launch = replace(NOTHING, passes=10**6)
    assert part_times(launch, CHIPS["A100"])[SHARED] == pytest.approx(
        10**6 / (108 * 1.41e9)
    )


def test_a_launcher_is_told_so_many_multiprocessors_where_there_is_no_gpu():
    assert multiprocessors(torch.device("cpu")) == CAPTURED_MULTIPROCESSORS


def call(*launches, architecture=90, flops=1e9, least_bytes=48e6):
    return CountedCall("square/B8", architecture, flops, least_bytes, launches)


def test_launches_follow_one_another_and_the_longest_part_binds():
    first = replace(NOTHING, distinct_bytes=24_000_000)
    second = replace(NOTHING, distinct_bytes=24_000_000, passes=int(15e-6 * CYCLES))
    made = predict(call(first, second), "float32", H200)
    # The ceiling: 48 MB at 4.8 TB/s are 10 us, 1 GFLOP in fp32 is 15 us.
    assert made.least_s == pytest.approx(5e-6 + 15e-6)
    assert made.bound_by == SHARED
    assert made.share == pytest.approx(1e9 / 66.9e12 / 20e-6)


def test_each_gpu_is_predicted_in_code_of_its_own():
    product = replace(NOTHING, matrix_flops={"bf16": 10**9}, distinct_bytes=1)
    made = predictions([call(product), call(product, architecture=80)], "bfloat16")
    assert [one.chip for one in made] == ["A100", "H100", "H200"]


def test_a_kernel_without_products_is_predicted_on_a_newer_gpu_too():
    copy = replace(NOTHING, distinct_bytes=48_000_000)
    made = predictions([call(copy, flops=1)], "float32")
    assert [one.chip for one in made] == ["H100", "H200", "B200"]
    assert format_predictions(made[1:2]) == "at most 100% on H200 (memory)"


def test_on_a_gpu_of_the_datasheets_it_alone_is_predicted():
    copy = replace(NOTHING, distinct_bytes=48_000_000)
    made = predictions([call(copy, flops=1)], "float32", "NVIDIA H200")
    assert [one.chip for one in made] == ["H200"]


def test_a_gpu_without_a_ceiling_in_the_dtype_is_left_out():
    copy = replace(NOTHING, distinct_bytes=48_000_000)
    made = predictions([call(copy, architecture=80, flops=1)], "float8_e4m3fn")
    assert [one.chip for one in made] == ["H100", "H200", "B200"]
    assert format_predictions([]) == ""
