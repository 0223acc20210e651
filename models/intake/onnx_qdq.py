"""An ONNX file becomes a graph: QDQ and QOperator forms as they are, a float file with pictures to calibrate on.

The file is translated to a module of aten operators (models.intake.onnx), in which quantization is torch's; from there
the way is that of any torch module. docs/onnx.md says what is taken, and how near it comes to ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.fx import GraphModule

from agent.errors import ModelError
from models.compress.quantize import quantize
from models.intake.calibration import Pixels, as_graph, samples, usual_pixels
from models.intake.onnx import elementwise, products, quantized, shapes, windows
from models.intake.onnx.fusions import fuse
from models.intake.onnx.proto import Source, parse
from models.intake.onnx.translate import DEQUANTIZE, QUANTIZE, Translator
from models.intake.source import Imported, Options
from models.intake.torch_export import to_graph

RULES = {key: rule for module in (elementwise, products, quantized, shapes, windows)
         for key, rule in module.registry.rules.items()}  # fmt: skip


def translate(path: str | Path) -> tuple[GraphModule, Source]:
    """The file as a module of aten operators, and what it was read as. Raises ``ModelError``."""
    source = parse(path, RULES)
    module = Translator(source, {kind: rule for (_, kind), rule in RULES.items()}).run()
    fuse(module)
    return module, source


def read(path: str | Path, options: Options) -> Imported:
    """The importer of .onnx files. Raises ``ModelError``; writes nothing."""
    module, source = translate(path)
    first = source.inputs[0] if source.inputs else None
    if first is None:
        raise ModelError(f"{path}: the graph has no input")
    taken: list[torch.Tensor] = []
    description = {"format": f"ONNX, opset {source.opset}", "producer": source.producer}
    if is_quantized(module):
        if options.calibrate is not None:
            raise ModelError(f"--calibrate: {path} is quantized already; leave it out")
    else:
        if options.calibrate is None:
            raise ModelError(f"{path} is a float model: say with --calibrate FOLDER which pictures to quantize it on")
        if len(source.inputs) != 1 or first.dtype is not torch.float32:
            raise ModelError(f"{path}: only a model of one float input is calibrated here; quantize it with ONNX "
                             "Runtime (quantize_static), and import what that writes")  # fmt: skip
        taken = samples(options.calibrate, first.shape, options.preprocess)
        module = _calibrated(module, taken, options.rule)
        description["calibration"] = f"{len(taken)} pictures or arrays, by {options.rule}"
    graph, constants = to_graph(module, [i.name for i in source.inputs], source.outputs)
    pixels: Pixels = usual_pixels(first.shape) if first.dtype is torch.float32 else "raw"
    seen = module.meta.get("calibration", ())
    return Imported(graph, constants, description, pixels=pixels, calibration=seen, samples=as_graph(taken))


def is_quantized(module: GraphModule) -> bool:
    """Whether the file has quantized activations; quantized weights alone need a calibration."""
    return any(node.target is QUANTIZE for node in module.graph.nodes)


def _calibrated(module: GraphModule, taken: list[torch.Tensor], rule: str) -> GraphModule:
    """Quantized as any torch module; torch.export carries the names along as "custom"."""
    for node in module.graph.nodes:
        if "source_name" in node.meta:
            node.meta["custom"] = {"source_name": node.meta["source_name"]}
    made = quantize(module, taken, rule)
    for node in made.graph.nodes:
        name = node.meta.get("custom", {}).get("source_name")
        if name and node.op == "call_function" and node.target not in (QUANTIZE, DEQUANTIZE):
            node.meta["source_name"] = name
    return made
