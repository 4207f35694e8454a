"""Plans that several tests look at: what there is to measure takes seconds to read, so
each is read once.
"""

import functools

from batchline.bench import catalogue
from batchline.bench.cases import plan

planned = functools.cache(plan)


@functools.cache
def declared():
    """Every variant of every op, as it declares itself."""
    return catalogue.read().variants
