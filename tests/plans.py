"""Plans that several tests look at: what there is to measure takes seconds to read, so
each is read once.
"""

import functools

from batchline.bench.cases import plan
from batchline.bench.declared import Catalogue

planned = functools.cache(plan)


@functools.cache
def declared():
    """Every variant of every op, as it declares itself."""
    the_plan = planned("smoke", "cpu")  # which other tests read, too
    return Catalogue(the_plan.ops, the_plan.broken).variants
