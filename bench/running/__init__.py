"""A benchmark run, from its plan to its report: what `batchline run` does."""
