"""Tiny TFLite files, an operator each."""

from __future__ import annotations

from typing import Any

from tests.tflite_file import File

SHAPE = (1, 4, 4, 3)


def _one(builtin: str, shape: tuple[int, ...] = SHAPE, kind: str = "", constants: tuple[Any, ...] = (),
         **fields: Any) -> bytes:  # fmt: skip
    f = File(1)
    x, y = f.activation(SHAPE), f.activation(shape)
    f.add(builtin, [x, *(f.constant(c) for c in constants)], y, kind, **fields)
    return f.write([x], [y])


def _weighted(which: str) -> bytes:
    f = File(2, which)
    x = f.activation(SHAPE)
    a, b = f.activation((1, 4, 4, 4)), f.activation((1, 2, 2, 4))
    f.add("CONV_2D", [x, *f.weights((4, 3, 3, 3), 0)], a, "Conv2DOptions", strideW=1, strideH=1)
    f.add("DEPTHWISE_CONV_2D", [a, *f.weights((1, 3, 3, 4), 3)], b, "DepthwiseConv2DOptions", strideW=2, strideH=2,
          depthMultiplier=1)  # fmt: skip
    flat, y = f.activation((1, 16)), f.activation((1, 5))
    f.add("RESHAPE", [b, f.constant([1, 16])], flat)
    f.add("FULLY_CONNECTED", [flat, *f.weights((5, 16), 0)], y, "FullyConnectedOptions")
    return f.write([x], [y])


def _two(builtin: str, kind: str) -> bytes:
    f = File(3)
    a, b, y = (f.activation(SHAPE) for _ in range(3))
    f.add(builtin, [a, b], y, kind)
    return f.write([a, b], [y])


def _concatenation() -> bytes:
    f = File(4)
    a, b, y = f.activation(SHAPE), f.activation(SHAPE), f.activation((1, 4, 4, 6))
    f.add("CONCATENATION", [a, b], y, "ConcatenationOptions", axis=3)
    return f.write([a, b], [y])


def seeds() -> list[bytes]:
    """Every one can be read; what can't be imported is a seed, too."""
    window = {"kind": "Pool2DOptions", "strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2}
    return [
        *(_weighted(kind) for kind in ("int8", "uint8") for _ in range(3)),
        *(_one(b) for b in ("RELU", "RELU6", "LOGISTIC", "TANH", "HARD_SWISH", "QUANTIZE")),
        _one("SOFTMAX", kind="SoftmaxOptions", beta=1.0),
        _one("LEAKY_RELU", kind="LeakyReluOptions", alpha=0.1),
        *(_two(b, f"{b.title()}Options") for b in ("ADD", "SUB", "MUL")),
        _one("AVERAGE_POOL_2D", (1, 2, 2, 3), **window),
        _one("MAX_POOL_2D", (1, 2, 2, 3), **window),
        _one("MEAN", (1, 3), "ReducerOptions", ([1, 2],)),
        _one("PAD", (1, 6, 6, 3), constants=([[0, 0], [1, 1], [1, 1], [0, 0]],)),
        _one("TRANSPOSE", (1, 3, 4, 4), constants=([0, 3, 1, 2],)),
        _one("STRIDED_SLICE", (1, 2, 2, 3), "StridedSliceOptions", ([0, 0, 0, 0], [1, 4, 4, 3], [1, 2, 2, 1])),
        _one("RESIZE_BILINEAR", (1, 8, 8, 3), "ResizeBilinearOptions", ([8, 8],), halfPixelCenters=True),
        _one("RESIZE_NEAREST_NEIGHBOR", (1, 8, 8, 3), "ResizeNearestNeighborOptions", ([8, 8],)),
        _one("SQUEEZE", (4, 4, 3), "SqueezeOptions", squeezeDims=[0]),
        _concatenation(),
    ]
