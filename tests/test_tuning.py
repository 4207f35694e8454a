"""Tuned configurations: found by traits and nearest size, a rule where nothing near was
measured, never mid-launch.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from batchline.kernels import device_files, tuning
from batchline.kernels.tuning import Tunable

ENTRIES = [
    {"traits": "float32/nn", "sizes": [8, 64, 64, 64], "config": {"BLOCK": 64}},
    {"traits": "float32/nn", "sizes": [8, 512, 512, 512], "config": {"BLOCK": 128}},
    {"traits": "float16/nn", "sizes": [8, 64, 64, 64], "config": {"BLOCK": 32}},
]


def describe(a):
    return f"{str(a.dtype).removeprefix('torch.')}/nn", tuple(a.shape)


@pytest.fixture
def tunable(tmp_path):
    found = Tunable(
        rule=lambda a, target: {"BLOCK": 1},
        candidates=lambda a, target: [{"BLOCK": 1}, {"BLOCK": 2}],
    )
    found.bind(tmp_path, "mine", describe)
    path = device_files.file_for(tmp_path, "tuning", "cpu")
    path.parent.mkdir()
    path.write_text(
        json.dumps(
            {
                "winners": {
                    "mine": ENTRIES,
                    "another": [{**ENTRIES[0], "config": {"BLOCK": 99}}],
                }
            }
        )
    )
    device_files.stored.cache_clear()
    return found


@pytest.mark.parametrize(
    "shape, dtype, config, source",
    [
        ((8, 64, 64, 64), torch.float32, {"BLOCK": 64}, "tuned"),
        ((8, 64, 64, 64), torch.float16, {"BLOCK": 32}, "tuned"),
        ((8, 64, 70, 60), torch.float32, {"BLOCK": 64}, "tuned nearby"),
        (
            (16, 128, 64, 64),
            torch.float32,
            {"BLOCK": 64},
            "tuned nearby",
        ),  # two doublings: as far as near goes
        ((17, 128, 64, 64), torch.float32, {"BLOCK": 1}, "rule"),
        ((8, 400, 512, 512), torch.float32, {"BLOCK": 128}, "tuned nearby"),
        (
            (8, 64, 64, 64),
            torch.float64,
            {"BLOCK": 1},
            "rule",
        ),  # other traits share nothing
        ((0, 64, 64, 64), torch.float32, {"BLOCK": 1}, "rule"),
    ],
)
def test_look_up(tunable, shape, dtype, config, source):
    x = torch.empty(shape, dtype=dtype, device="meta")
    assert tunable.look_up(x) == tuning.Choice(config, source)
    assert tunable.choose(x) == config


def test_without_a_file_the_rule_decides(tmp_path):
    found = Tunable(
        rule=lambda a, target: {"BLOCK": 1}, candidates=lambda a, target: []
    )
    found.bind(tmp_path, "mine", describe)
    assert found.look_up(torch.empty(8, 64, 64, 64, device="meta")) == tuning.Choice(
        {"BLOCK": 1}, "rule"
    )


def test_what_was_looked_up_is_remembered(tunable, monkeypatch):
    x = torch.empty(8, 64, 64, 64, device="meta")
    tunable.choose(x)
    monkeypatch.setattr(tuning, "stored", lambda path: pytest.fail("looked up again"))
    assert tunable.choose(torch.empty_like(x)) == {"BLOCK": 64}


def test_a_forced_configuration_is_taken_until_the_end_of_its_block(tunable):
    x = torch.empty(8, 64, 64, 64, device="meta")
    with pytest.raises(RuntimeError), tunable.forced({"BLOCK": 7}):
        with tunable.forced({"BLOCK": 8}):
            assert tunable.choose(x) == {"BLOCK": 8}
        assert tunable.choose(x) == {"BLOCK": 7}
        raise RuntimeError
    assert tunable.choose(x) == {"BLOCK": 64}


def test_a_configuration_is_forced_in_its_own_thread_alone(tunable):
    x = torch.empty(8, 64, 64, 64, device="meta")
    with tunable.forced({"BLOCK": 7}), ThreadPoolExecutor(1) as pool:
        assert pool.submit(tunable.choose, x).result() == {"BLOCK": 64}
        assert tunable.choose(x) == {"BLOCK": 7}


def test_sizes_that_never_repeat_fill_no_memory(tunable, monkeypatch):
    monkeypatch.setattr(tuning, "_MOST_REMEMBERED", 2)
    for size in range(1, 6):
        x = torch.empty(size, 64, 64, 64, device="meta")
        assert tunable.choose(x) == tunable.choose(x)
        assert len(tunable._known) <= 2


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    found = Tunable(
        rule=lambda a, target: {"BLOCK": 1}, candidates=lambda a, target: []
    )
    found.bind(tmp_path, "mine", describe)
    path = device_files.file_for(tmp_path, "tuning", "cpu")
    path.parent.mkdir()
    path.write_text('{"winners": ')
    with pytest.raises(
        ValueError, match=f"{path.name} is not a tuning file.*batchline tune"
    ):
        found.choose(torch.empty(8, 64, 64, 64, device="meta"))
