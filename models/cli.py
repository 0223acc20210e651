"""``int8d-make``: the workbench's command. Runs where torch is installed; devices never need it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.errors import Int8dError
from models.zoo import IMAGENET


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="int8d-make", description="Make int8 models for int8d.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build a model of the zoo")
    zoo = build.add_subparsers(dest="model", required=True)
    digits = zoo.add_parser("digits", help="train and quantize the digits network (seconds; the same file every time)")
    digits.add_argument("-o", "--output", type=Path, help="folder for the model and the pictures (default: models/zoo)")
    for name in IMAGENET:
        network = zoo.add_parser(name, help=f"quantize torchvision's {name}")
        network.add_argument(
            "--weights", choices=["DEFAULT", "none"], default="DEFAULT", help="none: seeded random ones"
        )
        network.add_argument("--calibrate", type=Path, metavar="FOLDER", help="pictures to calibrate on")
        network.add_argument("-o", "--output", type=Path, help=f"default: models/zoo/{name}.int8.safetensors")
    args = parser.parse_args(argv)
    try:
        return _digits(args) if args.model == "digits" else _imagenet(args)
    except (Int8dError, OSError) as e:
        print(f"int8d-make: {e}", file=sys.stderr)
        return 2


def _digits(args: argparse.Namespace) -> int:
    from models.zoo import digits

    folder: Path = args.output or digits.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    result = digits.make()
    path = digits.save(result, folder)
    print(f"float accuracy {100 * result.float_accuracy:.2f} %, int8 {100 * result.int8_accuracy:.2f} %, "
          f"on {digits.HELD_OUT} held-out pictures")  # fmt: skip
    _report(path, result.parity)
    return 0


def _imagenet(args: argparse.Namespace) -> int:
    from agent.modelfile import write
    from models.zoo import digits, imagenet

    path: Path = args.output or digits.FOLDER / f"{args.model}.int8.safetensors"
    result = imagenet.make(args.model, args.weights, args.calibrate)
    write(path, result.built.model)
    _report(path, result.built.parity)
    return 0


def _report(path: Path, parity) -> None:
    print(
        f"parity with PT2E over {parity.inputs} inputs: top-1 {100 * parity.top1_agreement:.1f} %, "
        f"{100 * parity.within_a_step:.2f} % of outputs within 1 step, at most {parity.largest_steps:.0f}"
    )
    print(f"wrote {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    sys.exit(main())
