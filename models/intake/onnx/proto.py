"""An ONNX file becomes operators, constants, inputs and outputs, or a ``ModelError`` that names what it can't be.

Only protobuf's own parser sees the bytes: no shape inference, no checker, no file beside this one. Every size is
compared with what the file holds before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

from agent.errors import ModelError
from agent.validate import Limits

OPSETS = range(11, 24)
MICROSOFT = "com.microsoft"
_FILE_LIMIT = 1 << 31  # protobuf's own
_SHOWN = 20
# Floats of every width are computed in fp32; unsigned ones that torch lacks are widened.
_DTYPES: Mapping[int, tuple[np.dtype[Any], torch.dtype]] = {
    TensorProto.FLOAT: (np.dtype("<f4"), torch.float32),
    TensorProto.FLOAT16: (np.dtype("<f2"), torch.float32),
    TensorProto.BFLOAT16: (np.dtype("<u2"), torch.float32),
    TensorProto.DOUBLE: (np.dtype("<f8"), torch.float32),
    TensorProto.UINT8: (np.dtype("u1"), torch.uint8),
    TensorProto.INT8: (np.dtype("i1"), torch.int8),
    TensorProto.UINT16: (np.dtype("<u2"), torch.int32),
    TensorProto.INT16: (np.dtype("<i2"), torch.int16),
    TensorProto.UINT32: (np.dtype("<u4"), torch.int64),
    TensorProto.INT32: (np.dtype("<i4"), torch.int32),
    TensorProto.UINT64: (np.dtype("<u8"), torch.int64),
    TensorProto.INT64: (np.dtype("<i8"), torch.int64),
    TensorProto.BOOL: (np.dtype("?"), torch.bool),
}
# What the operator's type is refused for, where a reason helps more than "has no translation".
_REASONS: Mapping[str, str] = {
    "Loop": "control flow; export the model with fixed shapes, so that the exporter unrolls it",
    "If": "control flow; export the model with fixed shapes, so that the exporter decides it",
    "Scan": "control flow; export the model with fixed shapes, so that the exporter unrolls it",
    "TopK": "what is chosen depends on the input; leave it to what reads the predictions",
    "NonMaxSuppression": "its output's shape depends on the input; leave it to what reads the predictions",
    "ConvInteger": "dynamic quantization; quantize statically (onnxruntime.quantization.quantize_static)",
    "MatMulInteger": "dynamic quantization; quantize statically (onnxruntime.quantization.quantize_static)",
    "DynamicQuantizeLinear": "dynamic quantization; quantize statically (onnxruntime.quantization.quantize_static)",
}


@dataclass(frozen=True)
class Operator:
    """A node. ``kind``: the operator's type; an input that is left out is "". Tensor attributes are torch's."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def get(self, name: str, default: Any) -> Any:
        """The attribute, which has the type of its default (None: any), or the default."""
        value = self.attributes.get(name, default)
        if default is not None and not isinstance(value, (float, int) if type(default) is float else type(default)):
            raise ModelError(f"{self}: the attribute '{name}' is {value!r}")
        return value

    def integers(self, name: str) -> tuple[int, ...] | None:
        """The attribute, a list of integers, or None."""
        value = self.attributes.get(name)
        if value is not None and not (isinstance(value, tuple) and all(isinstance(v, int) for v in value)):
            raise ModelError(f"{self}: the attribute '{name}' is {value!r}, not a list of integers")
        return value

    def __str__(self) -> str:
        return f"node '{self.name}' ({self.kind})"


@dataclass(frozen=True)
class Input:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Source:
    """A file's graph. Operators are in the file's order."""

    operators: tuple[Operator, ...]
    constants: dict[str, torch.Tensor]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    opset: int
    producer: str


def parse(path: str | Path, kinds: Collection[tuple[str, str]], limits: Limits = Limits()) -> Source:
    """kinds: what has a translation, as (domain, type). Raises ``ModelError``; lists all that is in the way."""
    try:
        if Path(path).stat().st_size >= _FILE_LIMIT:
            raise ModelError(f"{path}: 2 GB or more, which no ONNX file without external data is")
        model = onnx.ModelProto.FromString(Path(path).read_bytes())
    except OSError as e:
        raise ModelError(f"{path}: can't be read ({e.strerror})") from e
    except (DecodeError, RecursionError) as e:
        raise ModelError(f"{path}: not a readable ONNX file; is it whole?") from e
    return _Parser(model, kinds, limits).run(str(path))


class _Parser:
    def __init__(self, model: onnx.ModelProto, kinds: Collection[tuple[str, str]], limits: Limits) -> None:
        self.model, self.kinds, self.limits = model, kinds, limits
        self.offences: list[str] = []

    def run(self, path: str) -> Source:
        model, graph = self.model, self.model.graph
        if not model.HasField("graph") or not graph.node:
            raise ModelError(f"{path}: the file holds no graph; is it an ONNX model?")
        if len(graph.node) > self.limits.nodes or len(graph.initializer) > self.limits.tensors:
            raise ModelError(f"{path}: more than {self.limits.nodes} nodes or {self.limits.tensors} constants")
        opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        if opset not in OPSETS:
            raise ModelError(f"{path}: opset {opset}, where {OPSETS[0]} to {OPSETS[-1]} are taken; export the model "
                             "with another opset, or use onnx.version_converter")  # fmt: skip
        if model.training_info:
            self.offences.append("the file holds a training graph; export the model for inference")
        if graph.sparse_initializer:
            self.offences.append("sparse constants; store them dense")
        constants = {}
        for tensor in graph.initializer:
            value = self.tensor(tensor, f"constant '{tensor.name}'")
            if value is not None:
                constants[tensor.name] = value
        operators = tuple(self.operator(node, i) for i, node in enumerate(graph.node))
        inputs = tuple(self.input(v) for v in graph.input if v.name not in constants)
        if self.offences:
            more = len(self.offences) - _SHOWN
            listed = "\n  ".join(self.offences[:_SHOWN] + ([f"and {more} more"] if more > 0 else []))
            raise ModelError(f"{path}: this can't be imported:\n  {listed}")
        producer = f"{model.producer_name} {model.producer_version}".strip()
        return Source(operators, constants, tuple(i for i in inputs if i), tuple(v.name for v in graph.output), opset,
                      producer)  # fmt: skip

    def operator(self, node: onnx.NodeProto, index: int) -> Operator:
        domain = "" if node.domain == "ai.onnx" else node.domain
        name = node.name or (node.output[0] if node.output else f"#{index}")
        attributes: dict[str, Any] = {}
        made = Operator(node.op_type, name, tuple(node.input), tuple(node.output), attributes)
        if (domain, node.op_type) not in self.kinds:
            reason = _REASONS.get(node.op_type, "it has no translation; replace it in the model before exporting")
            if any(f.domain == node.domain and f.name == node.op_type for f in self.model.functions):
                reason = "a function of the file; write it out with onnx.inliner.inline_local_functions"
            elif domain:
                reason = f"of the domain '{domain}'; " + reason
            self.offences.append(f"{made}: {reason}")
            return made
        for attribute in node.attribute:
            attributes[attribute.name] = self.attribute(attribute, made)
        return made

    def attribute(self, a: onnx.AttributeProto, operator: Operator) -> Any:
        match a.type:
            case AttributeProto.FLOAT:
                return a.f
            case AttributeProto.INT:
                return a.i
            case AttributeProto.STRING:
                return a.s.decode("utf-8", "replace")
            case AttributeProto.TENSOR:
                return self.tensor(a.t, f"{operator}: attribute '{a.name}'")
            case AttributeProto.FLOATS:
                return tuple(a.floats)
            case AttributeProto.INTS:
                return tuple(a.ints)
            case AttributeProto.STRINGS:
                return tuple(s.decode("utf-8", "replace") for s in a.strings)
        self.offences.append(f"{operator}: the attribute '{a.name}' is no number, text or dense tensor")
        return None

    def tensor(self, t: onnx.TensorProto, where: str) -> torch.Tensor | None:
        if t.data_location == TensorProto.EXTERNAL or t.external_data:
            self.offences.append(f"{where}: its data lies in another file; save the model as one file "
                                 "(onnx.save_model with save_as_external_data=False)")  # fmt: skip
            return None
        if t.data_type not in _DTYPES:
            kind = TensorProto.DataType.Name(t.data_type) if t.data_type in TensorProto.DataType.values() else "?"
            self.offences.append(f"{where}: elements of type {kind} are not taken")
            return None
        stored, dtype = _DTYPES[t.data_type]
        shape, elements = tuple(t.dims), math.prod(t.dims)
        if any(d < 0 for d in shape) or elements > self.limits.elements or len(shape) > self.limits.rank:
            self.offences.append(f"{where}: a bad shape, {list(shape)[: self.limits.rank]}")
            return None
        values = self.values(t, stored)
        if values.size != elements:
            self.offences.append(f"{where}: {values.size} elements of data, where the shape {list(shape)} has "
                                 f"{elements}; is the file whole?")  # fmt: skip
            return None
        if t.data_type == TensorProto.BFLOAT16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        elif t.data_type in (TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64):
            values = values.astype(np.int64)
        return torch.from_numpy(values.reshape(shape).astype(values.dtype.newbyteorder("="))).to(dtype)

    def values(self, t: onnx.TensorProto, stored: np.dtype[Any]) -> np.ndarray:
        if t.HasField("raw_data"):
            whole = len(t.raw_data) - len(t.raw_data) % stored.itemsize
            return np.frombuffer(t.raw_data[:whole], stored)
        match t.data_type:
            case TensorProto.FLOAT:
                return np.array(t.float_data, np.float32)
            case TensorProto.DOUBLE:
                return np.array(t.double_data, np.float64)
            case TensorProto.INT64:
                return np.array(t.int64_data, np.int64)
            case TensorProto.UINT32 | TensorProto.UINT64:
                return np.array(t.uint64_data, np.uint64).astype(stored)
            case TensorProto.FLOAT16:
                return np.array(t.int32_data, np.int64).astype(np.uint16).view(np.float16)
        return np.array(t.int32_data, np.int64).astype(stored)

    def input(self, v: onnx.ValueInfoProto) -> Input | None:
        if not v.type.HasField("tensor_type") or v.type.tensor_type.elem_type not in _DTYPES:
            self.offences.append(f"input '{v.name}': it is no tensor of numbers")
            return None
        if not v.type.tensor_type.HasField("shape"):
            self.offences.append(f"input '{v.name}': it has no shape; export the model with fixed shapes")
            return None
        shape = []
        for axis, d in enumerate(v.type.tensor_type.shape.dim):
            if d.HasField("dim_value") and d.dim_value > 0:
                shape.append(d.dim_value)
            elif axis == 0:
                shape.append(1)  # the batch
            else:
                self.offences.append(
                    f"input '{v.name}': axis {axis} ('{d.dim_param or '?'}') has no fixed extent; fix it "
                    "(onnxruntime.tools.make_dynamic_shape_fixed), or export with fixed shapes"
                )
                return None
        if not shape or len(shape) > self.limits.rank or math.prod(shape) > self.limits.elements:
            self.offences.append(f"input '{v.name}': a bad shape, {shape[: self.limits.rank]}")
            return None
        return Input(v.name, tuple(shape), _DTYPES[v.type.tensor_type.elem_type][1])


def dtype_of(code: int, where: Sequence[object] | object) -> torch.dtype:
    """torch's form of an ONNX element type."""
    if code not in _DTYPES:
        raise ModelError(f"{where}: elements of type {code} are not taken")
    return _DTYPES[code][1]
