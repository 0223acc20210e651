"""A TFLite file for each operator, beside LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent import graph as g
from agent import load
from agent.errors import ModelError
from models.intake.source import import_source
from tests.litert import Reference, file_of, noise, steps
from tests.tflite_file import File

CASES: dict[str, Callable[[str], bytes]] = {}


def case(*names: str) -> Callable:
    """Registers a function of a kind (int8 or uint8) and, where there are several, of a name."""

    def register(make: Callable) -> Callable:
        for name in names:
            CASES[name] = make if len(names) == 1 else lambda kind, name=name: make(kind, name)
        return make

    return register


@case("conv same", "conv valid", "conv stride", "conv dilated", "conv relu6", "conv grouped")
def _conv(kind: str, name: str) -> bytes:
    f = File(1, kind)
    x, y = f.activation((2, 9, 8, 4)), None
    same = name not in ("conv valid", "conv dilated")
    stride = 2 if name == "conv stride" else 1
    dilation = 2 if name == "conv dilated" else 1
    shape = (2, 5, 4, 6) if stride == 2 else (2, 9, 8, 6) if same else (2, 5, 4, 6) if dilation == 2 else (2, 7, 6, 6)
    y = f.activation(shape, 0.1, 4 if name != "conv relu6" else -128)
    f.add("CONV_2D", [x, *f.weights((6, 3, 3, 2 if name == "conv grouped" else 4), 0)], y, "Conv2DOptions",
          padding=0 if same else 1, strideH=stride, strideW=stride, dilationHFactor=dilation, dilationWFactor=dilation,
          fusedActivationFunction=3 if name == "conv relu6" else 0)  # fmt: skip
    return f.write([x], [y])


@case("depthwise", "depthwise multiplier")
def _depthwise(kind: str, name: str) -> bytes:
    f = File(2, kind)
    m = 1 if name == "depthwise" else 2
    x, y = f.activation((1, 9, 9, 5)), f.activation((1, 5, 5, 5 * m), 0.06)
    f.add("DEPTHWISE_CONV_2D", [x, *f.weights((1, 3, 3, 5 * m), 3)], y, "DepthwiseConv2DOptions", padding=0, strideH=2,
          strideW=2, depthMultiplier=m, dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=1)  # fmt: skip
    return f.write([x], [y])


@case("transpose conv same", "transpose conv valid")
def _transpose_conv(kind: str, name: str) -> bytes:
    f = File(3, kind)
    same = name.endswith("same")
    shape = (1, 10, 8, 3) if same else (1, 11, 9, 3)
    x, y = f.activation((1, 5, 4, 4)), f.activation(shape, 0.1)
    w, b = f.weights((3, 3, 3, 4), 0)
    f.add("TRANSPOSE_CONV", [f.constant(shape), w, x, b], y, "TransposeConvOptions", padding=0 if same else 1,
          strideH=2, strideW=2, version=3)  # fmt: skip
    return f.write([x], [y])


@case("fully connected", "fully connected flattens", "fully connected keeps")
def _fully_connected(kind: str, name: str) -> bytes:
    f = File(4, kind)
    keep = name.endswith("keeps")
    x = f.activation((2, 2, 2, 4) if name != "fully connected" else (2, 16))
    y = f.activation((2, 2, 2, 7) if keep else (2, 7), 0.1)
    f.add("FULLY_CONNECTED", [x, *f.weights((7, 4 if keep else 16), 0)], y, "FullyConnectedOptions", keepNumDims=keep)
    return f.write([x], [y])


@case("batch matmul", "batch matmul adjoint")
def _batch_matmul(kind: str, name: str) -> bytes:
    f = File(5, kind)
    adjoint = name.endswith("adjoint")
    a, b = f.activation((1, 2, 3, 5)), f.activation((1, 2, 4, 5) if adjoint else (1, 2, 5, 4), 0.03, 0)
    y = f.activation((1, 2, 3, 4), 0.1)
    f.add("BATCH_MATMUL", [a, b], y, "BatchMatMulOptions", adjX=False, adjY=adjoint)
    return f.write([a, b], [y])


@case(
    *(f"{op} {form}" for op in ("ADD", "SUB", "MUL") for form in ("same", "gate", "scalar", "channels", "rows", "relu"))
)
def _binary(kind: str, name: str) -> bytes:
    f = File(6, kind)
    op, form = name.split()
    x = f.activation((1, 4, 5, 6))
    shapes = {"same": (1, 4, 5, 6), "relu": (1, 4, 5, 6), "gate": (1, 1, 1, 6), "rows": (1, 4, 1, 1)}
    other = f.activation(shapes[form], 0.03, -9) if form in shapes else f.bytes_(() if form == "scalar" else (6,))
    y = f.activation((1, 4, 5, 6), 0.07, 10)
    options = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}[op]
    f.add(op, [x, other], y, options, fusedActivationFunction=1 if form == "relu" else 0)
    return f.write([x, other] if form in shapes else [x], [y])


@case("MAXIMUM", "MINIMUM")
def _extremes(kind: str, name: str) -> bytes:
    f = File(7, kind)
    x, y = f.activation((1, 30, 40)), f.activation((1, 30, 40))
    f.add(name, [x, f.tensor((1,), kind, 0.05, f.tensors[x].quantization.zeroPoint[0], np.array([40], kind))], y,
          "MaximumMinimumOptions")  # fmt: skip
    return f.write([x], [y])


@case("average pool", "average pool same", "average pool global", "max pool", "max pool relu")
def _pool(kind: str, name: str) -> bytes:
    f = File(8, kind)
    x = f.activation((1, 8, 8, 5))
    k, s, padding, shape = {"average pool": (2, 2, 1, (1, 4, 4, 5)), "average pool same": (3, 2, 0, (1, 4, 4, 5)),
                            "average pool global": (8, 1, 1, (1, 1, 1, 5)), "max pool": (3, 2, 0, (1, 4, 4, 5)),
                            "max pool relu": (2, 2, 1, (1, 4, 4, 5))}[name]  # fmt: skip
    y = f.activation(shape)
    f.add("AVERAGE_POOL_2D" if name.startswith("average") else "MAX_POOL_2D", [x], y, "Pool2DOptions", padding=padding,
          strideH=s, strideW=s, filterHeight=k, filterWidth=k,
          fusedActivationFunction=1 if name.endswith("relu") else 0)  # fmt: skip
    return f.write([x], [y])


MEANS = {"mean spatial": ([1, 2], True), "mean spatial flat": ([1, 2], False), "mean rows": ([1], True),
         "mean columns": ([-2], False), "mean channels": ([3], True), "mean ends": ([1, 3], False)}  # fmt: skip


@case(*MEANS)
def _mean(kind: str, name: str) -> bytes:
    f = File(9, kind)
    axes, keep = MEANS[name]
    shape = [1, 6, 5, 4]
    out = [1 if a in axes or a - 4 in axes else n for a, n in enumerate(shape)]
    out = out if keep else [n for a, n in enumerate(shape) if a not in axes and a - 4 not in axes]
    x, y = f.activation(shape), f.activation(out, 0.02, 7)
    f.add("MEAN", [x, f.constant(axes)], y, "ReducerOptions", keepDims=keep)
    return f.write([x], [y])


@case("pad", "pad value", "pad channels", "pad before conv", "pad before conv and more")
def _pad(kind: str, name: str) -> bytes:
    f = File(10, kind)
    x = f.activation((1, 4, 5, 3))
    frame = [[0, 0], [1, 2], [2, 1], [0, 2 if name == "pad channels" else 0]]
    y = f.activation([n + sum(p) for n, p in zip((1, 4, 5, 3), frame, strict=True)])
    if name == "pad value":
        f.add("PADV2", [x, f.constant(frame), f.bytes_((1,), 0.05, 3)], y, "PadV2Options")
    else:
        f.add("PAD", [x, f.constant(frame)], y, "PadOptions")
    if "conv" not in name:
        return f.write([x], [y])
    z = f.activation((1, 5, 6, 2), 0.1)
    f.add("CONV_2D", [y, *f.weights((2, 3, 3, 3), 0)], z, "Conv2DOptions", padding=1, strideH=1, strideW=1)
    return f.write([x], [z] if name == "pad before conv" else [z, y])


@case("reshape", "squeeze", "expand dims", "transpose", "slice", "shape and reshape")
def _move(kind: str, name: str) -> bytes:
    f = File(11, kind)
    x = f.activation((1, 4, 1, 6))
    shape = {"reshape": (2, 12), "squeeze": (4, 6), "expand dims": (1, 1, 4, 1, 6), "transpose": (1, 6, 4, 1),
             "slice": (1, 2, 1, 4), "shape and reshape": (1, 24)}[name]  # fmt: skip
    y = f.activation(shape)
    if name == "reshape":
        f.add("RESHAPE", [x, f.constant(shape)], y, "ReshapeOptions", newShape=[*shape])
    elif name == "squeeze":
        f.add("SQUEEZE", [x], y, "SqueezeOptions", squeezeDims=[0, 2])
    elif name == "expand dims":
        f.add("EXPAND_DIMS", [x, f.constant(0)], y, "ExpandDimsOptions")
    elif name == "transpose":
        f.add("TRANSPOSE", [x, f.constant([0, 3, 1, 2])], y, "TransposeOptions")
    elif name == "slice":
        f.add("SLICE", [x, f.constant([0, 1, 0, 2]), f.constant([1, 2, 1, -1])], y, "SliceOptions")
    else:  # as Keras's Flatten is converted
        whole, first, new = (f.tensor(s, "int32") for s in ((4,), (), (2,)))
        f.add("SHAPE", [x], whole, "ShapeOptions", outType=2)
        f.add("STRIDED_SLICE", [whole, f.constant([0]), f.constant([1]), f.constant([1])], first,
              "StridedSliceOptions", shrinkAxisMask=1)  # fmt: skip
        f.add("PACK", [first, f.constant(24)], new, "PackOptions", valuesCount=2, axis=0)
        f.add("RESHAPE", [x, new], y, "ReshapeOptions")
    return f.write([x], [y])


STRIDED = {"strided slice": ([0, 1, 4], [2, 4, 0], [1, 2, -1], {}, (2, 2, 4)),
           "strided slice masks": ([9, 1, -1], [0, 9, 0], [1, 1, -2], {"beginMask": 1, "endMask": 5}, (2, 3, 3)),
           "strided slice shrink": ([1, 0, 2], [2, 4, 3], [1, 1, 1], {"shrinkAxisMask": 5}, (4,)),
           "strided slice ellipsis": ([0, 1], [0, 3], [1, 1], {"ellipsisMask": 1}, (2, 4, 2)),
           "strided slice new axis": ([0, 0, 1], [0, 2, 3], [1, 1, 1], {"newAxisMask": 1}, (1, 2, 2, 5))}  # fmt: skip


@case(*STRIDED)
def _strided_slice(kind: str, name: str) -> bytes:
    f = File(12, kind)
    begin, end, stride, masks, shape = STRIDED[name]
    x, y = f.activation((2, 4, 5)), f.activation(shape)
    f.add(
        "STRIDED_SLICE", [x, f.constant(begin), f.constant(end), f.constant(stride)], y, "StridedSliceOptions", **masks
    )
    return f.write([x], [y])


@case("concatenation", "concatenation of five axes", "pack", "unpack", "split", "split v")
def _join(kind: str, name: str) -> bytes:
    f = File(13, kind)
    if name.startswith("conc"):
        tail = (2,) if name.endswith("axes") else ()
        a, b = f.activation((1, 2, 3, 4, *tail)), f.activation((1, 2, 5, 4, *tail))
        y = f.activation((1, 2, 8, 4, *tail))
        f.add("CONCATENATION", [a, b], y, "ConcatenationOptions", axis=2)
        return f.write([a, b], [y])
    if name == "pack":
        a, b = f.activation((3, 4)), f.activation((3, 4))
        y = f.activation((3, 2, 4))
        f.add("PACK", [a, b], y, "PackOptions", valuesCount=2, axis=1)
        return f.write([a, b], [y])
    x = f.activation((1, 4, 6))
    if name == "unpack":
        ys = [f.activation((1, 6)) for _ in range(4)]
        f.add("UNPACK", [x], ys, "UnpackOptions", num=4, axis=1)
    elif name == "split":
        ys = [f.activation((1, 4, 2)) for _ in range(3)]
        f.add("SPLIT", [f.constant(2), x], ys, "SplitOptions", numSplits=3)
    else:
        ys = [f.activation((1, 4, n)) for n in (1, 3, 2)]
        f.add("SPLIT_V", [x, f.constant([1, -1, 2]), f.constant(2)], ys, "SplitVOptions", numSplits=3)
    return f.write([x], ys)


RESIZES = {f"{op} {mode} {size}": (op, flags, out) for op in ("bilinear", "nearest")
           for mode, flags in (("plain", {}), ("aligned", {"alignCorners": True}),
                               ("centred", {"halfPixelCenters": True}))
           for size, out in (("up", (9, 10)), ("down", (3, 2)))}  # fmt: skip


@case(*RESIZES)
def _resize(kind: str, name: str) -> bytes:
    f = File(14, kind)
    op, flags, out = RESIZES[name]
    x, y = f.activation((1, 5, 6, 3)), f.activation((1, *out, 3))
    builtin, options = {"bilinear": ("RESIZE_BILINEAR", "ResizeBilinearOptions"),
                        "nearest": ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")}[op]  # fmt: skip
    f.add(builtin, [x, f.constant(out)], y, options, version=3, **flags)
    return f.write([x], [y])


@case("depth to space", "space to depth")
def _blocks(kind: str, name: str) -> bytes:
    f = File(15, kind)
    small, large = f.activation((1, 2, 3, 8)), f.activation((1, 4, 6, 2))
    if name == "depth to space":
        f.add("DEPTH_TO_SPACE", [small], large, "DepthToSpaceOptions", blockSize=2)
        return f.write([small], [large])
    f.add("SPACE_TO_DEPTH", [large], small, "SpaceToDepthOptions", blockSize=2)
    return f.write([large], [small])


UNARY = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0), "HARD_SWISH": (0.04, -5), "RELU": (0.03, 0),
         "RELU6": (0.0236, -128), "RELU_N1_TO_1": (0.01, 2), "LEAKY_RELU": (0.06, 9), "ABS": (0.05, 0),
         "EXP": (0.5, -128), "GELU": (0.05, -20)}  # fmt: skip


@case(*UNARY)
def _unary(kind: str, name: str) -> bytes:
    f = File(16, kind)
    x, y = f.activation((1, 16, 16, 2), 0.05, 3), f.activation((1, 16, 16, 2), *UNARY[name])
    if name == "LEAKY_RELU":
        f.add(name, [x], y, "LeakyReluOptions", alpha=0.2)
    else:
        f.add(name, [x], y)
    return f.write([x], [y])


@case("prelu of one slope", "prelu by channel")
def _prelu(kind: str, name: str) -> bytes:
    f = File(17, kind)
    x, y = f.activation((1, 6, 6, 5)), f.activation((1, 6, 6, 5), 0.06, 9)
    f.add("PRELU", [x, f.bytes_((1, 1, 1) if name == "prelu of one slope" else (1, 1, 5), 0.01, 3)], y)
    return f.write([x], [y])


@case("softmax", "softmax with beta", "softmax of a dequantized map")
def _softmax(kind: str, name: str) -> bytes:
    f = File(18, kind)
    x, y = f.activation((2, 3, 10), 0.1), f.activation((2, 3, 10), 1 / 256, -128)
    beta = 0.5 if name == "softmax with beta" else 1.0
    if name.endswith("map"):
        real, y = f.tensor((2, 3, 10), "float32"), f.tensor((2, 3, 10), "float32")
        f.add("DEQUANTIZE", [x], real, "DequantizeOptions")
        f.add("SOFTMAX", [real], y, "SoftmaxOptions", beta=beta)
    else:
        f.add("SOFTMAX", [x], y, "SoftmaxOptions", beta=beta)
    return f.write([x], [y])


@case("arg max", "arg max of rows")
def _arg_max(kind: str, name: str) -> bytes:
    f = File(19, kind)
    x, y = f.activation((2, 9, 40)), f.tensor((2, 9) if name == "arg max" else (2, 40), "int32")
    f.add("ARG_MAX", [x, f.constant(-1 if name == "arg max" else 1)], y, "ArgMaxOptions", outputType=2)
    return f.write([x], [y])


@case("quantize", "requantize", "requantize to the other container", "dequantize", "cast")
def _containers(kind: str, name: str) -> bytes:
    f = File(20, kind)
    real = f.tensor((1, 4, 9), "float32")
    x, other = f.activation((1, 4, 9)), {"int8": "uint8", "uint8": "int8"}[kind]
    match name:
        case "quantize":
            f.add("QUANTIZE", [real], x, "QuantizeOptions")
            return f.write([real], [x])
        case "dequantize":
            f.add("DEQUANTIZE", [x], real, "DequantizeOptions")
        case "cast":
            x = f.tensor((1, 4, 9), kind)
            f.add("CAST", [x], real, "CastOptions", inDataType=9 if kind == "int8" else 3, outDataType=0)
        case _:
            real = f.activation((1, 4, 9), 0.07, -1, kind if name == "requantize" else other)
            f.add("QUANTIZE", [x], real, "QuantizeOptions")
    return f.write([x], [real])


# What LiteRT computes for int8 only.
INT8_ONLY = {"batch matmul", "batch matmul adjoint", "ABS", "EXP", "transpose conv same", "transpose conv valid"}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for n in CASES for k in ("int8", "uint8")
                                            if k == "int8" or n not in INT8_ONLY])  # fmt: skip
def test_an_operator_is_within_a_step_of_litert(kind: str, name: str, tmp_path: Path) -> None:
    data = CASES[name](kind)
    model = import_source(file_of(tmp_path, data))
    assert not [n.name for n in model.header.graph.nodes if isinstance(n, g.Aten)]
    engine, reference = load(model), Reference(data)
    rng = np.random.default_rng(3)
    for _ in range(5):
        x = noise(model, rng)
        for ours, theirs, detail in zip(
            engine.run(x).values(), reference.run(*x.values()), reference.outputs, strict=True
        ):
            off = steps(ours, theirs, detail)
            assert off.max() <= (1e-6 if theirs.dtype == np.float32 else 1)
            assert theirs.max() > theirs.min()  # a comparison of constants would prove nothing


@pytest.mark.parametrize("name", ["average pool", "average pool same", "average pool global"])
def test_average_pools_round_halves_as_litert_does(name: str, tmp_path: Path) -> None:
    data = CASES[name]("int8")
    model = import_source(file_of(tmp_path, data))
    engine, reference = load(model), Reference(data)
    rng = np.random.default_rng(4)
    for _ in range(50):
        x = noise(model, rng)
        assert not steps(*engine.run(x).values(), *reference.run(*x.values()), *reference.outputs).any()


def test_padding_of_zeros_becomes_the_convolution_s(tmp_path: Path) -> None:
    def operators(name: str) -> list[str]:
        nodes = import_source(file_of(tmp_path, CASES[name]("int8"))).header.graph.nodes
        return [type(n).__name__ for n in nodes]

    assert operators("pad before conv") == ["Conv2d"]
    assert operators("pad before conv and more") == ["Pad", "Conv2d"]  # an output of the model


def test_a_gate_stays_a_gate_and_a_scalar_is_a_table(tmp_path: Path) -> None:
    gate = import_source(file_of(tmp_path, CASES["MUL gate"]("int8"))).header.graph
    assert [type(n).__name__ for n in gate.nodes] == ["Mul"]
    scalar = import_source(file_of(tmp_path, CASES["ADD scalar"]("int8"))).header.graph
    assert [type(n).__name__ for n in scalar.nodes] == ["Lut"]


def test_unsigned_weights_keep_their_container(tmp_path: Path) -> None:
    model = import_source(file_of(tmp_path, CASES["conv same"]("uint8")))
    (conv,) = (n for n in model.header.graph.nodes if isinstance(n, g.Conv2d))
    assert conv.weight_zero_point == 119
    assert model.constants[conv.weight].dtype == np.uint8


@pytest.mark.parametrize("name", ["conv same", "concatenation", "prelu by channel", "strided slice masks", "mean rows"])
def test_damaged_bytes_give_a_model_or_an_error(name: str, tmp_path: Path) -> None:
    data = CASES[name]("int8")
    rng = np.random.default_rng(len(name))
    refused = 0
    for i in range(300):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(data)))
            damaged[at] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(0, 256))]))
        path = file_of(tmp_path, bytes(damaged[: rng.integers(8, len(data))] if i % 10 == 0 else damaged))
        try:
            import_source(path)
        except ModelError:
            refused += 1
    assert 0 < refused < 300
