"""The noise part of a run, made up: estimates from drawn pairs, cosines and step times
of a line.
"""

import numpy as np

from batchline.bench.stats.noise_scale import NoiseScale, expected_cosine, over_batches

LAYERS = ("hidden", "output")


def estimate(simple, spread=0.05, seed=0, count=8, batch=64):
    """Of `count` independent batches of a gradient of ‖G‖² = 1."""
    random = np.random.default_rng(seed)
    pairs = [
        NoiseScale(
            simple * (1 + spread * random.normal()), 1 + spread * random.normal()
        )
        for _ in range(count)
    ]
    return over_batches(pairs, batch).to_json()


def point(updates, seed, simple, spread=0.05):
    found = estimate(simple, spread, seed)
    return {
        "updates": updates,
        "seed": seed,
        "loss": 2.0 / (1 + updates),
        "estimate": found,
        "layers": dict.fromkeys(LAYERS, found),
        "tests": {"norm": 0.5, "inner product": 0.1, "orthogonality": 0.4},
        "two_batch_sizes": {"trace": simple, "square": 1.0},
        "cosines": [
            {
                "batch": batch,
                "cosines": [
                    expected_cosine(simple, batch) + 0.01 * sign for sign in (-1, 1)
                ],
            }
            for batch in (16, 64, 256)
        ],
    }


def workload(points, steps=None):
    return {
        "title": "a small net on made-up data",
        "samples": 1000,
        "parameters": 123,
        "train_batch": 32,
        "learning_rate": 0.1,
        "noise_batch": 64,
        "points": points,
        "limit_bytes": 2**20,
        "steps": steps
        or [
            {
                "batch": batch,
                "samples_s": [1e-3 + 1e-5 * batch] * 9,
                "memory_method": "resident set",
                "peak_bytes": 1000 + 100 * batch,
            }
            for batch in (1, 16, 256)
        ],
    }


def noise(**workloads):
    return {
        "workloads": workloads
        or {
            "digits": workload(
                [
                    point(updates, seed, simple)
                    for seed in (0, 1)
                    for updates, simple in ((0, 10.0), (50, 40.0), (400, 160.0))
                ]
            )
        },
        "seconds": 12.0,
    }
