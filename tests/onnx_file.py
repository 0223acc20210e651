"""Tiny ONNX files, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
import onnx  # noqa: E402
import torch  # noqa: E402

from models.intake.onnx_qdq import translate  # noqa: E402

RNG = np.random.default_rng(4)
Node = tuple[str, Sequence[str], Sequence[str], dict[str, Any]]


def network(
    nodes: Sequence[Node], inputs: dict[str, Sequence[Any]], outputs: Sequence[str],
    constants: dict[str, np.ndarray] | None = None, opset: int = 20, dtypes: dict[str, int] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """A graph of (type, inputs, outputs, attributes); a type may carry a domain, "domain::type"."""
    made = []
    for i, (full, read_, given, attributes) in enumerate(nodes):
        domain, _, kind = full.rpartition("::")
        made.append(helper.make_node(kind, read_, given, f"n{i}", domain=domain or None, **attributes))
    types = dtypes or {}
    graph = helper.make_graph(
        made, "test",
        [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()],
        [onnx.helper.make_empty_tensor_value_info(n) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def runtime(model: onnx.ModelProto, inputs: dict[str, np.ndarray], optimized: bool = True) -> list[np.ndarray]:
    options = ort.SessionOptions()
    # Without VNNI its products of u8 and s8 would be cut off at 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, inputs)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = (1, 4, 6, 8)


def same_as_runtime(model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path) -> torch.fx.GraphModule:
    module, source = translate(saved(model, folder))
    with torch.no_grad():
        ours = module(*(torch.from_numpy(inputs[i.name]) for i in source.inputs))
    ours = ours if isinstance(ours, tuple) else (ours,)
    for y, expected in zip(ours, runtime(model, inputs), strict=True):
        assert tuple(y.shape) == expected.shape
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5, atol=1e-5)
    return module
