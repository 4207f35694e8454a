"""For which GPU a variant takes inputs: some are of one architecture alone."""

from batchline.kernels.architectures import PINNED, WITHOUT_GPU
from batchline.kernels.target import compiling_for


def taken_for(variant, inputs):
    """The first architecture for which the variant takes the inputs: the usual one, or
    one of those that are pinned. None if there is none.
    """
    for architecture in (WITHOUT_GPU, *PINNED):
        with compiling_for(architecture):
            if variant.why_unsupported(*inputs) is None:
                return architecture
    return None
