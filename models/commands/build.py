"""``int8d-make build``: a model of the zoo."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.commands import calibration
from models.zoo import IMAGENET


def add_arguments(parser: argparse.ArgumentParser) -> None:
    zoo = parser.add_subparsers(dest="model", required=True)
    digits = zoo.add_parser("digits", help="train and quantize the digits network (seconds; the same file every time)")
    digits.add_argument("-o", "--output", type=Path, help="folder for the model and the pictures (default: models/zoo)")
    calibration.add_arguments(digits, rule=False)
    for name in IMAGENET:
        network = zoo.add_parser(name, help=f"quantize torchvision's {name}")
        network.add_argument(
            "--weights", choices=["DEFAULT", "none"], default="DEFAULT", help="none: seeded random ones"
        )
        network.add_argument("--calibrate", type=Path, metavar="FOLDER", help="pictures to calibrate on")
        network.add_argument("-o", "--output", type=Path, help=f"default: models/zoo/{name}.int8.safetensors")
        calibration.add_arguments(network)


def run(args: argparse.Namespace) -> int:
    return _digits(args) if args.model == "digits" else _imagenet(args)


def _digits(args: argparse.Namespace) -> int:
    from models.zoo import digits

    folder: Path = args.output or digits.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    result = digits.make()
    path = digits.save(result, folder)
    print(f"float accuracy {100 * result.float_accuracy:.2f} %, int8 {100 * result.int8_accuracy:.2f} %, "
          f"on {digits.HELD_OUT} held-out pictures")  # fmt: skip
    calibration.report(args, result.calibration)
    _report(path, result.parity)
    return 0


def _imagenet(args: argparse.Namespace) -> int:
    from agent.modelfile import write
    from models.zoo import digits, imagenet

    path: Path = args.output or digits.FOLDER / f"{args.model}.int8.safetensors"
    result = imagenet.make(args.model, args.weights, args.calibrate, rule=args.rule)
    calibration.report(args, result.built.calibration)
    write(path, result.built.model)
    _report(path, result.built.parity)
    return 0


def _report(path: Path, parity) -> None:
    print(
        f"parity with PT2E over {parity.inputs} inputs: top-1 {100 * parity.top1_agreement:.1f} %, "
        f"{100 * parity.within_a_step:.2f} % of outputs within 1 step, at most {parity.largest_steps:.0f}"
    )
    print(f"wrote {path} ({path.stat().st_size:,} bytes)")
