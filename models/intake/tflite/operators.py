"""The way in: a file is read, and each operator imported by the function that is named here for it."""

from __future__ import annotations

from models.intake import source as intake
from models.intake.tflite import elementwise, moves, reader, weighted, windows
from models.intake.tflite.importer import Import, Importer

OPERATORS: dict[str, Importer] = {
    "ADD": elementwise.add,
    "SUB": elementwise.subtract,
    "MUL": elementwise.multiply,
    "DIV": elementwise.with_scalar,
    "MAXIMUM": elementwise.with_scalar,
    "MINIMUM": elementwise.with_scalar,
    "PRELU": elementwise.prelu,
    "LEAKY_RELU": elementwise.leaky_relu,
    "GELU": elementwise.gelu,
    "SOFTMAX": elementwise.softmax,
    "ARG_MAX": elementwise.arg_max,
    "QUANTIZE": elementwise.quantize,
    "DEQUANTIZE": elementwise.dequantize,
    "CAST": elementwise.cast,
    "CONV_2D": weighted.conv2d,
    "DEPTHWISE_CONV_2D": weighted.depthwise,
    "TRANSPOSE_CONV": weighted.transpose_conv,
    "FULLY_CONNECTED": weighted.fully_connected,
    "BATCH_MATMUL": weighted.batch_matmul,
    "AVERAGE_POOL_2D": windows.average_pool,
    "MAX_POOL_2D": windows.max_pool,
    "MEAN": windows.mean,
    "RESIZE_BILINEAR": windows.resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": windows.resize_nearest,
    "PAD": moves.pad,
    "PADV2": moves.pad,
    "RESHAPE": moves.reshape,
    "SQUEEZE": moves.reshape,
    "EXPAND_DIMS": moves.reshape,
    "SHAPE": moves.shape,
    "CONCATENATION": moves.concatenation,
    "PACK": moves.pack,
    "UNPACK": moves.unpack,
    "SPLIT": moves.split,
    "SPLIT_V": moves.split_v,
    "TRANSPOSE": moves.transpose,
    "SLICE": moves.slice_,
    "STRIDED_SLICE": moves.strided_slice,
    "BROADCAST_TO": moves.broadcast_to,
    "DEPTH_TO_SPACE": moves.depth_to_space,
    "SPACE_TO_DEPTH": moves.space_to_depth,
} | dict.fromkeys(elementwise.UNARY, elementwise.unary)


def read(path: str, options: intake.Options) -> intake.Imported:
    """path: a .tflite file. Raises ``ModelError``, which names every operator that has no form here."""
    source = reader.open_model(path)
    with reader.bounded(path):
        graph, constants = Import(source).run(OPERATORS)
    description = {"format": f"TFLite, {len(source.operators)} operators", "tools": intake.versions("tflite")}
    return intake.Imported(graph, constants, description, fit="whole")
