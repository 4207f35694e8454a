"""What `batchline all-reduce` stores of times that are known: those of a law."""

from batchline.bench.noise.rank_scaling import Scaling
from batchline.bench.store import formats
from batchline.bench.store.rank_times import RankTimes

CALL_S, SAMPLE_S, MESSAGE_S, GRADIENT_S = 2e-5, 3e-6, 1e-4, 4e-4
COUNTS, BATCHES = (1, 2, 4), (8, 16, 32)
WAYS = "torch_one_message", "own_bucketed"


def time_s(ranks, batch):
    messages = 2 * (ranks - 1)
    return CALL_S + SAMPLE_S * batch + messages * (MESSAGE_S + GRADIENT_S / ranks)


def measured(**parts):
    """The document of a machine with four cores."""
    return {
        "format": formats.RANK_TIMES.number,
        "machine": {"device_name": "Some CPU"},
        "backend": "gloo",
        "cores": 4,
        "parameters": 262144,
        "bucket_bytes": 2**18,
        "batches": list(BATCHES),
        "rows": [
            {
                "way": way,
                "wire": "float32",
                "ranks": ranks,
                "batch": batch,
                "samples_s": [time_s(ranks, batch)] * 3,
                "error": 1e-7 * ranks,
            }
            for way in WAYS
            for ranks in COUNTS
            for batch in BATCHES
        ],
        "all_reduce": [
            {"ranks": ranks, "bytes": size, "samples_s": [1e-4 * ranks]}
            for ranks in (2, 4)
            for size in (4096, 2**20)
        ],
        "started": "2026-11-30T12:00:00+00:00",
        "why_busy": None,
        **parts,
    }


def wrong_on(*counts):
    """The same where own_bucketed is wrong on these counts of ranks."""
    document = measured()
    for row in document["rows"]:
        if row["way"] == "own_bucketed" and row["ranks"] in counts:
            del row["samples_s"], row["error"]
            row["why_not"] = "on strided: off by 7 times what rounding can do"
    return document


def scaling_of(document):
    parts = {name: part for name, part in document.items() if name != "format"}
    return Scaling.of(formats.from_json(RankTimes, parts))
