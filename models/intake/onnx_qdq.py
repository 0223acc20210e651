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
from models.intake.onnx import elementwise, products, quantized, shapes, windows
from models.intake.onnx.fusions import fuse
from models.intake.onnx.proto import Source, parse
from models.intake.onnx.translate import QUANTIZE, Translator
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
