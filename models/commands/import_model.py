"""``int8d-make import``: the model that you already have becomes a model file."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.commands import calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a .tflite file, an .onnx file, a .pt2 of torch.export.save, or package.module:function, "
        "which returns an nn.Module",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="the model file to write")
    parser.add_argument("--name", help="the model's name (default: the source's)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="the classes' names, one a line")
    parser.add_argument(
        "--preprocess", help="how a pixel becomes an input: raw (its byte is the input's), 0..1, -1..1, imagenet, or "
        "a JSON object: mode, resize, crop, interpolation, mean, std",
    )  # fmt: skip
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help="pictures to calibrate a float model on")
    calibration.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from agent.modelfile import write
    from models.intake.source import Options, import_calibrated

    options = Options(args.name, args.labels, args.preprocess, args.calibrate, args.rule)
    model, observed = import_calibrated(args.source, options)
    calibration.report(args, observed)
    write(args.output, model)
    graph = model.header.graph
    torch = sum(str(n.__struct_config__.tag) == "aten" for n in graph.nodes)
    fallback = f", {torch} of them in torch" if torch else ""
    print(f"{model.header.name}: {len(graph.nodes)} operators{fallback}")
    print(f"wrote {args.output} ({args.output.stat().st_size:,} bytes)")
    return 0
