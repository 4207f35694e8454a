"""What is trained to see the noise of real gradients: a model, its data, and the loss
of each sample.

All are offline, small enough for two cores, and drawn from a seed. `workloads` holds
them by name.
"""

from batchline.bench.noise.workloads.characters import characters
from batchline.bench.noise.workloads.digits import digits

workloads = {workload.name: workload for workload in (digits, characters)}
