"""How kernels are measured, judged and shown. `python -m batchline` is the way in."""

import os

if __name__ == "bench":  # a checkout is on sys.path, and another package is meant
    from batchline import namesakes

    namesakes.import_namesake(__name__)

if os.environ.get(
    "BATCHLINE_STAND_IN"
):  # bench.measure.stand_in.VARIABLE: importing that takes a second
    from batchline.bench.measure import stand_in

    stand_in.install()

    from batchline.bench.measure.emulator import on_stand_in

    on_stand_in.install()
