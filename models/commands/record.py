"""``int8d-make record``: statistics for a model file that has none, or of better inputs than it was calibrated on."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """The statistics are what a device holds its traffic against (docs/drift.md). Give a few hundred inputs that
are as the device will see them, and that the model was not trained on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", type=Path, help="a model file; it is written again, with the same model in it")
    parser.add_argument("inputs", type=Path, metavar="FOLDER", help="pictures and .npy arrays")


def run(args: argparse.Namespace) -> int:
    from agent.modelfile import read, write
    from models.check.samples import folder
    from models.statistics import with_statistics

    model = read(args.model)
    model = with_statistics(model, folder(model, args.inputs))
    write(args.model, model)
    assert model.statistics is not None
    print(f"wrote {args.model}: statistics of {model.statistics.samples} inputs")
    return 0
