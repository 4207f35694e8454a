"""Evidence with a planted truth: sweeps, peaks and cosines that the claims are judged
on.
"""

import math

import numpy as np

BATCHES = (4, 16, 64, 256, 1024)
RATES = (0.0625, 0.125, 0.25, 0.5)
UNTRAINED, TARGET, NOISE_SCALE, LEAST_UPDATES = 2.3, 0.1, 20.0, 100.0


def sweep(
    accuracy_slope=0.0,
    accuracy_spread=0.0,
    jitter_power=-0.5,
    sharpness_power=0.0,
    best=0.25,
    seeds=5,
    fails=lambda batch, rate: False,
    noise_scale=NOISE_SCALE,
):
    """A sweep whose loss falls by one exponential: at `best` it is at TARGET after
    LEAST_UPDATES·(1 + φ/B) updates.

    A rate a factor of two off takes twice as long. Accuracy and sharpness go with the
    batch as told; every seed has an offset of its own that all its batches share, and
    `accuracy_spread` is what they don't share.
    """
    random = np.random.default_rng(0)
    runs = []
    for batch in BATCHES:
        for rate in RATES:
            for seed in range(seeds):
                needed = (
                    LEAST_UPDATES
                    * (1 + noise_scale / batch)
                    * 2 ** abs(math.log2(rate / best))
                    * (1 + seed / 50)
                )
                updates = sorted(
                    {
                        0,
                        1000,
                        round(2 * needed),
                        *(round(needed * 1.1**k) for k in range(-30, 5)),
                    }
                )
                loss = [
                    UNTRAINED * (TARGET / UNTRAINED) ** (count / needed)
                    for count in updates
                ]
                noise = random.normal(0, accuracy_spread)
                accuracy = 0.9 + 0.01 * seed + accuracy_slope * math.log2(batch) + noise
                failed = fails(batch, rate)
                runs.append(
                    {
                        "batch": batch,
                        "learning_rate": rate,
                        "seed": seed,
                        "diverged": failed,
                        "why": "",
                        "curve": {
                            "updates": updates[:1] if failed else updates,
                            "train_loss": loss[:1] if failed else loss,
                            "test_loss": loss,
                            "test_accuracy": [accuracy] * len(updates),
                            "train_s": [1e-4 * count for count in updates],
                            "step_loss_std": [None]
                            + [batch**jitter_power * (1 + seed / 9)]
                            * (len(updates) - 1),
                        },
                        "sharpness": None if failed else 1.0,
                        "sharpness_at_target": (
                            None if failed else (5 + seed) * batch**sharpness_power
                        ),
                    }
                )
    return {
        "workload": "digits",
        "title": "an MLP",
        "samples": 1437,
        "held_out": 360,
        "seed": 0,
        "usual_rate": 0.125,
        "grid": {
            "batches": list(BATCHES),
            "learning_rates": list(RATES),
            "tuning_seeds": 2,
            "seeds": seeds,
            "updates": 1000,
            "epochs": 2,
            "target_loss": TARGET,
        },
        "machine": {"device_name": "Some CPU"},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 200.0,
        "threads": 1,
        "processes": 2,
        "runs": runs,
        "not_run": [],
        "partial": False,
    }


def noise(steps=(), cosines=(), estimate=None, limit_bytes=None):
    """The noise part of a run, of one workload at one point of its training."""
    return {
        "workloads": {
            "digits": {
                "title": "an MLP",
                "points": [
                    {"updates": 10, "estimate": estimate, "cosines": list(cosines)}
                ],
                "steps": list(steps),
                "limit_bytes": limit_bytes,
            }
        }
    }


def peaks_of_a_line(fixed, per_sample, batches=(1, 4, 16, 64)):
    return [
        {"batch": batch, "samples_s": [1.0], "peak_bytes": fixed + per_sample * batch}
        for batch in batches
    ]


def drawn_cosines(simple, batches=(4, 16, 64, 256), pairs=40, size=400, seed=5):
    """Cosines of the means of two independent batches of Gaussian gradients whose
    B_simple is known.
    """
    random, true = np.random.default_rng(seed), np.zeros(400)
    true[0] = 1.0
    sigma = (simple / size) ** 0.5
    rows = []
    for batch in batches:
        first, second = (
            true + random.normal(0, sigma / batch**0.5, (pairs, size)) for _ in range(2)
        )
        cosines = (
            (first * second).sum(1)
            / np.linalg.norm(first, axis=1)
            / np.linalg.norm(second, axis=1)
        )
        rows.append({"batch": batch, "cosines": cosines.tolist()})
    return rows


def stored_estimate(simple, answer="bounded"):
    band = {"low": 0.9 * simple, "high": 1.1 * simple}
    return {
        "scale": {"trace": simple, "square": 1.0},
        "trace": band,
        "square": band,
        "simple": band,
        "answer": answer,
        "batch": 64,
        "batches": 8,
        "method": "test",
        "confidence": 0.95,
        "pairs": [],
    }
