"""`batchline noise-models`: NoiseMeter on models that others wrote, beside Opacus and
BackPACK.
"""

from __future__ import annotations

import argparse

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode

HELP = "NoiseMeter on GPT-2, BERT, T5, a ResNet and others: how right, and at what cost"
SAMPLE = """
model    parameters    worst error of n    plain step    NoiseMeter    Opacus ghost norms
-------  ------------  ------------------  ------------  ------------  --------------------
ViT      1,612,042     8.8e-07             256 ms        1.47x         1.76x
LSTM     1,315,328     6.5e-06             115 ms        1.89x         can't

worst error of n: of a parameter's squared gradient norms, against single samples in fp64
plain step: the median of a step, forward and backward
the others: how many times a plain step a metered one takes; * leaves parameters out
"""
EXITS = {
    ExitCode.CLEAN: "each model is right to 1e-5, or refused with the reason",
    ExitCode.FAULT: "n is off by more than 1e-5 of a model that is not refused",
    ExitCode.USAGE: "unknown device, or no model of that name",
    ExitCode.NOT_MEASURED: "the machine was too busy to time a step",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_device(parser)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="only those with this in their names (default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=_arguments.positive,
        default=6.0,
        help="for the steps of each model (default 6)",
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help="time steps also while other processes take the cores",
    )


def run(options: argparse.Namespace) -> int:
    from batchline.bench.measure.machine.environment import resolve_device
    from batchline.bench.noise.experiments import models

    device = resolve_device(options.device)
    return models.run(device, options.seconds, options.models, options.busy)
