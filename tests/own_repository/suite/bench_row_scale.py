"""A pytest-benchmark suite of one's own: `pytest suite/bench_row_scale.py`."""

import torch


def test_row_scale(batchline_benchmark):
    x, s = torch.randn(64, 4096), torch.rand(64)
    y = batchline_benchmark(lambda x, s: x * s[:, None], x, s)
    assert y.shape == x.shape
