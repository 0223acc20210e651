"""ONNX files: quantized forms to the step, refusals by name, whole networks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent import graph as g
from agent import load
from agent.engine import native
from agent.errors import ModelError
from agent.modelfile import FORMAT, Header, assemble

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
import onnx
import torch

from models.intake.onnx_qdq import read, translate
from models.intake.source import Imported, Options
from tests.onnx_file import RNG, Node, X, f32, ints, network, runtime, saved

# Quantized forms


def quantization(name: str, scale: float, zero_point: int, kind: type = np.uint8) -> dict[str, np.ndarray]:
    return {f"{name}_s": np.float32(scale), f"{name}_z": np.array(zero_point, kind)}


def q(name: str, source: str, given: str) -> Node:
    return "QuantizeLinear", [source, f"{name}_s", f"{name}_z"], [given], {}


def dq(name: str, source: str, given: str, **attributes: int) -> Node:
    return "DequantizeLinear", [source, f"{name}_s", f"{name}_z"], [given], attributes


def qdq_network(weight_kind: type = np.int8, activation: type = np.uint8) -> onnx.ModelProto:
    """conv, relu, add, mul, pool, gemm between Q and DQ."""
    w = RNG.integers(-127, 128, (8, 4, 3, 3))
    signed, zero = weight_kind is np.int8, 0 if activation is np.uint8 else -128
    ws = (np.abs(f32(8)) * 0.01 + 0.001).astype(np.float32) if signed else np.float32(0.01)
    scales: np.ndarray = np.float32(0.02) * ws
    constants = {
        **quantization("x", 0.02, 128 + zero, activation), **quantization("c", 0.08, zero, activation),
        **quantization("a", 0.15, zero, activation), **quantization("m", 0.3, zero, activation),
        **quantization("p", 0.3, zero, activation), **quantization("g", 0.2, 100 + zero, activation),
        "w": w.astype(np.int8) if signed else (w + 128).astype(np.uint8), "w_s": ws,
        "w_z": np.zeros(8, np.int8) if signed else np.array(120, np.uint8),
        "b": RNG.integers(-9000, 9000, 8).astype(np.int32), "b_s": scales,
        "b_z": np.zeros(8, np.int32) if signed else np.int32(0),
        "v": RNG.integers(-127, 128, (3, 8)).astype(np.int8), **quantization("v", 0.01, 0, np.int8),
    }  # fmt: skip
    axis = {"axis": 0} if signed else {}
    nodes = [
        q("x", "x", "xq"), dq("x", "xq", "xd"), dq("w", "w", "wd", **axis), dq("b", "b", "bd", **axis),
        ("Conv", ["xd", "wd", "bd"], ["conv"], {"pads": (1, 1, 1, 1)}), ("Relu", ["conv"], ["relu"], {}),
        q("c", "relu", "cq"), dq("c", "cq", "cd"),
        ("MaxPool", ["cd"], ["most"], {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}), q("c", "most", "hq"),
        dq("c", "hq", "hd"), ("Add", ["cd", "hd"], ["sum"], {}), q("a", "sum", "aq"),
        dq("a", "aq", "ad"), ("Mul", ["ad", "hd"], ["product"], {}), q("m", "product", "mq"), dq("m", "mq", "md"),
        ("GlobalAveragePool", ["md"], ["pool"], {}), q("p", "pool", "pq"), dq("p", "pq", "pd"),
        ("Flatten", ["pd"], ["flat"], {}), q("p", "flat", "fq"), dq("p", "fq", "fd"), dq("v", "v", "vd"),
        ("Gemm", ["fd", "vd"], ["scores"], {"transB": 1}), q("g", "scores", "gq"), dq("g", "gq", "y"),
    ]  # fmt: skip
    return network(nodes, {"x": X}, ["y"], constants)


def engine_of(imported: Imported) -> Any:
    return load(assemble(Header(FORMAT, "net", "1", imported.graph), imported.constants))


def as_graph(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x


def within_a_step(model: onnx.ModelProto, step: float, folder: Path, shape: Sequence[int] = X) -> Imported:
    imported = read(saved(model, folder), Options())
    engine = engine_of(imported)
    name, output = imported.graph.inputs[0], imported.graph.outputs[0]
    for _ in range(5):
        x = f32(*shape)
        (expected,) = runtime(model, {"x": x}, optimized=False)
        y = engine.run({name: as_graph(x)})[output]
        assert np.abs(y - as_graph(expected)).max() <= step * 1.001
    return imported


@pytest.mark.parametrize("weights", [np.int8, np.uint8])
@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_qdq_is_native_within_a_step(weights: type, activation: type, tmp_path: Path) -> None:
    imported = within_a_step(qdq_network(weights, activation), 0.2, tmp_path)
    kinds = [type(n).__name__ for n in imported.graph.nodes]
    assert "Aten" not in kinds
    assert {"Conv2d", "Add", "Mul", "AvgPool2d", "Linear"} <= set(kinds)


def test_weights_biases_and_names_are_those_of_the_file(tmp_path: Path) -> None:
    model = qdq_network()
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    imported = read(saved(model, tmp_path), Options())
    conv = next(n for n in imported.graph.nodes if isinstance(n, g.Conv2d))
    np.testing.assert_array_equal(imported.constants[conv.weight], held["w"].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(imported.constants[conv.bias], held["b"])
    assert {"x", "relu", "sum", "product", "y"} <= {t.name for t in imported.graph.tensors}
    assert (imported.graph.inputs, imported.graph.outputs) == (("x",), ("y",))


def test_asymmetric_weights_keep_their_zero_point(tmp_path: Path) -> None:
    imported = read(saved(qdq_network(np.uint8), tmp_path), Options())
    conv = next(n for n in imported.graph.nodes if isinstance(n, g.Conv2d))
    assert conv.weight_zero_point == 120
    assert imported.constants[conv.weight].dtype == np.uint8


def test_a_zero_point_for_each_channel_is_computed_in_float(tmp_path: Path) -> None:
    model = qdq_network()
    zero_points = next(t for t in model.graph.initializer if t.name == "w_z")
    zero_points.CopyFrom(numpy_helper.from_array(np.arange(8, dtype=np.int8), "w_z"))
    imported = read(saved(model, tmp_path), Options())
    assert next(n.target for n in imported.graph.nodes if isinstance(n, g.Aten)) == "aten::conv2d"
    x = f32(*X)
    (expected,) = runtime(model, {"x": x}, optimized=False)
    assert np.abs(engine_of(imported).run({"x": as_graph(x)})["y"] - expected).max() <= 0.2 * 1.001


@pytest.mark.skipif(
    native.isas() == ["ref", "avx2"], reason="without VNNI, ONNX Runtime cuts these products of u8 and s8 at 16 bits"
)
def test_the_operator_form_of_onnx_runtime(tmp_path: Path) -> None:
    k = "com.microsoft::"
    constants = {
        **quantization("x", 0.02, 128), **quantization("c", 0.08, 110), **quantization("s", 1 / 256, 0),
        **quantization("a", 0.1, 90), **quantization("m", 0.05, 128), **quantization("l", 0.05, 20),
        **quantization("k", 0.1, 90), **quantization("p", 0.02, 128), **quantization("g", 0.02, 128),
        "w": RNG.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8),
        "w_s": np.abs(f32(8)) * np.float32(0.01) + np.float32(1e-3),
        "w_z": np.zeros(8, np.int8), "b": RNG.integers(-9000, 9000, 8).astype(np.int32),
        "v": RNG.integers(-127, 128, (16, 3)).astype(np.int8), **quantization("v", 0.01, 0, np.int8),
        "d": RNG.integers(-900, 900, 3).astype(np.int32), "to": ints(1, 16),
        "u": RNG.integers(-127, 128, (3, 5)).astype(np.int8), **quantization("u", 0.01, 0, np.int8),
        **quantization("y", 0.02, 128),
    }  # fmt: skip

    def of(name: str) -> list[str]:
        return [f"{name}_s", f"{name}_z"]

    nodes = [
        q("x", "x", "xq"),
        ("QLinearConv", ["xq", *of("x"), "w", *of("w"), *of("c"), "b"], ["cq"], {"pads": (1, 1, 1, 1)}),
        (k + "QLinearSigmoid", ["cq", *of("c"), *of("s")], ["sq"], {}),
        (k + "QLinearMul", ["cq", *of("c"), "sq", *of("s"), *of("m")], ["mq"], {}),
        (k + "QLinearAdd", ["cq", *of("c"), "mq", *of("m"), *of("a")], ["aq"], {}),
        (k + "QLinearLeakyRelu", ["aq", *of("a"), *of("l")], ["lq"], {"alpha": 0.1}),
        (k + "QLinearConcat", [*of("k"), "aq", *of("a"), "lq", *of("l")], ["kq"], {"axis": 1}),
        ("MaxPool", ["kq"], ["hq"], {"kernel_shape": (2, 2), "strides": (2, 2)}),
        (k + "QLinearGlobalAveragePool", ["hq", *of("k"), *of("p")], ["pq"], {"channels_last": 0}),
        ("Reshape", ["pq", "to"], ["fq"], {}),
        (k + "QGemm", ["fq", *of("p"), "v", *of("v"), "d", *of("g")], ["gq"], {}),
        ("QLinearMatMul", ["gq", *of("g"), "u", *of("u"), *of("y")], ["yq"], {}),
        dq("y", "yq", "y"),
    ]  # fmt: skip
    model = network(nodes, {"x": X}, ["y"], constants)
    imported = within_a_step(model, 0.02 * 3, tmp_path)  # a step of each of the three requantizations behind the pool
    assert not any(isinstance(n, g.Aten) for n in imported.graph.nodes)


def test_bytes_may_go_in_and_come_out(tmp_path: Path) -> None:
    constants = {**quantization("x", 0.02, 128), **quantization("y", 0.01, 0)}
    nodes = [dq("x", "x", "xd"), ("Sigmoid", ["xd"], ["s"], {}), q("y", "s", "y")]
    model = network(nodes, {"x": X}, ["y"], constants, dtypes={"x": TensorProto.UINT8})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    imported = read(saved(model, tmp_path), Options())
    x = RNG.integers(0, 256, X).astype(np.uint8)
    y = engine_of(imported).run({"x": as_graph(x)})["y"]
    (expected,) = runtime(model, {"x": x}, optimized=False)
    assert y.dtype == np.uint8
    assert np.abs(y.astype(int) - expected.astype(int)).max() <= 1


# Refusals


def refused(model: onnx.ModelProto, folder: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        read(saved(model, folder), Options())
    for word in words:
        assert word in str(caught.value)


def test_all_that_has_no_translation_is_named(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["t"])], "b", [], [helper.make_empty_tensor_value_info("t")]
    )
    model = network([("Relu", ["x"], ["r"], {}), ("TopK", ["r", "k"], ["v", "i"], {})], {"x": X}, ["v"], {"k": ints(1)})
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], "branches", then_branch=branch, else_branch=branch))
    model.graph.node.append(helper.make_node("Own", ["r"], ["o"], "mine", domain="here"))
    refused(model, tmp_path, "'n1' (TopK)", "'branches' (If)", "control flow", "'mine' (Own)", "'here'")


def test_external_data_is_refused_unread(tmp_path: Path) -> None:
    model = network([("Add", ["x", "w"], ["y"], {})], {"x": X}, ["y"], {"w": f32(8)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    refused(model, tmp_path, "'w'", "another file", "save_as_external_data=False")


def test_a_dynamic_batch_is_one_and_other_extents_must_be_known(tmp_path: Path) -> None:
    nodes: list[Node] = [("Relu", ["x"], ["y"], {})]
    _, source = translate(saved(network(nodes, {"x": ("n", 4, 6, 8)}, ["y"]), tmp_path))
    assert source.inputs[0].shape == X
    refused(network(nodes, {"x": (1, 4, "height", 8)}, ["y"]), tmp_path, "'x'", "axis 2", "'height'")


def test_a_float_file_needs_a_calibration(tmp_path: Path) -> None:
    refused(network([("Relu", ["x"], ["y"], {})], {"x": X}, ["y"]), tmp_path, "float model", "--calibrate")


HOSTILE: dict[str, onnx.ModelProto] = {
    "opset": network([("Relu", ["x"], ["y"], {})], {"x": X}, ["y"], opset=7),
    "order": network([("Relu", ["z"], ["y"], {})], {"x": X}, ["y"]),
    "nothing": network([], {"x": X}, ["x"]),
    "size": network([("Expand", ["x", "s"], ["y"], {})], {"x": (1,)}, ["y"], {"s": ints(1 << 20, 1 << 20)}),
    "fill": network([("ConstantOfShape", ["s"], ["y"], {})], {"x": X}, ["y"], {"s": ints(1 << 20, 1 << 20)}),
    "range": network([("Range", ["a", "b", "c"], ["y"], {})], {"x": X}, ["y"],
                     {"a": np.int64(0), "b": np.int64(1 << 60), "c": np.int64(1)}),
    "stride": network([("MaxPool", ["x"], ["y"], {"kernel_shape": (2, 2), "strides": (0, 0)})], {"x": X}, ["y"]),
    "groups": network([("Conv", ["x", "w"], ["y"], {"group": 0})], {"x": X}, ["y"], {"w": f32(6, 4, 3, 3)}),
    "attribute": network([("Flatten", ["x"], ["y"], {"axis": "one"})], {"x": X}, ["y"]),
    "scale": network([q("x", "x", "y")], {"x": X}, ["y"], quantization("x", 0.0, 0)),
    "zero": network([("Div", ["a", "b"], ["y"], {})], {"x": X}, ["y"], {"a": np.int64(1), "b": np.int64(0)}),
    "wide weights": network(
        [q("x", "x", "xq"), dq("x", "xq", "xd"), dq("w", "w", "wd", axis=0), ("Conv", ["xd", "wd"], ["c"], {}),
         q("x", "c", "y")], {"x": X}, ["y"],
        {**quantization("x", 0.02, 0), "w": np.ones((8, 4, 3, 3), np.int32), "w_s": np.ones(8, np.float32),
         "w_z": np.zeros(8, np.int32)},
    ),
    "too few": network([("Conv", ["x"], ["y"], {})], {"x": X}, ["y"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    refused(HOSTILE[name], tmp_path)


def test_truncated_and_foreign_bytes_are_refused(tmp_path: Path) -> None:
    whole = qdq_network().SerializeToString()
    for cut in range(0, len(whole), 97):
        (tmp_path / "net.onnx").write_bytes(whole[:cut])
        with pytest.raises(ModelError):
            read(tmp_path / "net.onnx", Options())


# Whole networks


def exported(net: torch.nn.Module, shape: Sequence[int], path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(*shape),), path, dynamo=False, opset_version=17, input_names=["x"],
                          output_names=["logits"])  # fmt: skip
    return path


def test_the_digits_come_the_same_by_both_roads(tmp_path: Path) -> None:
    from models.compress.quantize import quantize
    from models.intake.torch_export import to_graph
    from models.zoo import digits

    data = digits.split()
    net = digits.train(data, epochs=3)
    pictures = digits.to_input(data.train[:64])
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pictures.numpy()):
        np.save(folder / f"{i:03d}.npy", picture)
    by_torch = engine_of(Imported(*to_graph(quantize(net, [pictures]))))
    imported = read(exported(net, (1, 1, 8, 8), tmp_path / "digits.onnx"), Options(calibrate=folder))
    by_onnx = engine_of(imported)
    assert (by_torch.backend, by_onnx.backend) == ("native", "native")
    for picture in digits.to_input(data.held_out[:100]).numpy():
        x = as_graph(picture[None])
        ours, theirs = (e.run({"x": x})["logits"] for e in (by_onnx, by_torch))
        assert ours.argmax() == theirs.argmax()


def test_a_network_of_onnx_runtime_is_native_and_equal(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from bench.onnx_parity import compare, export
    from models.zoo.imagenet import synthetic

    path = tmp_path / "mobilenet_v3_large.onnx"
    export("mobilenet_v3_large", path)
    made = compare(path, list(synthetic(2, 5).numpy()))
    assert made.native
    for kind, share in made.operators.items():
        assert share.equal >= 0.999 * share.total, f"{kind}: {share}"
        assert share.largest <= 1
