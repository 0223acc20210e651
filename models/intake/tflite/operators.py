"""Which function imports which operator, by the schema's name."""

from __future__ import annotations

from collections.abc import Callable

from models.intake.tflite import elementwise, moves, reader, weighted, windows
from models.intake.tflite.importer import Import

OPERATORS: dict[str, Callable[[Import, reader.Operator], None]] = {
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
