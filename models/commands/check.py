"""``int8d-make check``: a model and the source that it was imported from, side by side."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import msgspec

EPILOG = """exit status: 0 where top-1 agrees on at least --at-least percent of the inputs, for every output, and
the golden pairs come out; 1 otherwise; 2 where the check could not be made."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", help="a model file")
    parser.add_argument(
        "--against", metavar="SOURCE",
        help="what it was imported from: a .tflite file (run by LiteRT), .onnx (ONNX Runtime), .pt2 or "
        "package.module:function (torch); without it, the kernels are held against int8d's own torch backend",
    )  # fmt: skip
    parser.add_argument(
        "--inputs", type=Path, metavar="FOLDER", help="pictures and .npy arrays (default: seeded noise)"
    )
    parser.add_argument("--count", type=int, default=100, help="inputs of noise, or files at most (default 100)")
    parser.add_argument("--layers", action="store_true", help="every tensor that the source has, too")
    parser.add_argument(
        "--at-least", type=float, default=100.0, metavar="PERCENT", help="of top-1 that has to agree (default 100)"
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from agent.modelfile import read
    from models.check import as_text, check
    from models.check.samples import folder, noise

    model = read(args.model)
    samples = folder(model, args.inputs) if args.inputs else noise(model, args.count)
    report = check(model, itertools.islice(samples, args.count), args.against, args.layers)
    print(msgspec.json.encode(report).decode() if args.json else as_text(report))
    return 0 if report.passes(args.at_least / 100) else 1
