"""The one benchmark function. pytest-benchmark runs it once a case and keeps its
rounds; `session` gives the cases.
"""

import pytest

from batchline.bench.statuses import NotMeasured


def test_kernel(case_id, batchline, benchmark):
    try:
        batchline.measure(case_id, benchmark)
    except NotMeasured as refusal:
        pytest.skip(str(refusal))
