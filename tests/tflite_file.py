"""Tiny TFLite files, an operator or two each, for what has to be compared with LiteRT.

f = File()
x = f.activation((1, 8, 8, 3))
y = f.add("RELU", [x], f.activation((1, 8, 8, 3)))
data = f.write([x], [y])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {"uint8": schema.TensorType.UINT8, "int8": schema.TensorType.INT8, "int16": schema.TensorType.INT16,
         "int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64,
         "float32": schema.TensorType.FLOAT32}  # fmt: skip


class File:
    """A model in the making. Tensors are named t0, t1, …, and are referred to by index."""

    def __init__(self, seed: int = 0, kind: str = "int8") -> None:
        """kind: int8 or uint8, of activations and weights."""
        self.rng, self.kind = np.random.default_rng(seed), kind
        self.tensors: list[Any] = []
        self.buffers = [schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: list[Any] = []

    def tensor(
        self, shape: Sequence[int], kind: str, scale: Any = None, zero_point: Any = 0, data: np.ndarray | None = None,
        axis: int = 0,
    ) -> int:  # fmt: skip
        t = schema.TensorT()
        t.name, t.shape, t.type, t.buffer = f"t{len(self.tensors)}", [*shape], TYPES[kind], 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
            t.buffer = len(self.buffers) - 1
        if scale is not None:
            t.quantization = schema.QuantizationParametersT()
            t.quantization.scale = np.atleast_1d(np.float32(scale))
            t.quantization.zeroPoint = np.broadcast_to(np.int64(zero_point), t.quantization.scale.shape).copy()
            t.quantization.quantizedDimension = axis
        self.tensors.append(t)
        return len(self.tensors) - 1

    def activation(self, shape: Sequence[int], scale: float = 0.05, zero_point: int = 3, kind: str = "") -> int:
        kind = kind or self.kind
        return self.tensor(shape, kind, scale, zero_point + (128 if kind == "uint8" else 0))

    def constant(self, array: Any, kind: str = "int32") -> int:
        array = np.asarray(array, kind)
        return self.tensor(array.shape, kind, data=array)

    def bytes_(self, shape: Sequence[int], scale: float = 0.02, zero_point: int = -5) -> int:
        """A quantized constant of random bytes."""
        data = self.rng.integers(0, 256, shape).astype(np.uint8)
        return self.tensor(shape, self.kind, scale, zero_point + (128 if self.kind == "uint8" else 0), data)

    def weights(self, shape: Sequence[int], axis: int) -> list[int]:
        """Weights and bias: int8 a scale a channel, uint8 one scale and a zero point."""
        n = shape[axis]
        bias = self.rng.integers(-1000, 1000, n).astype(np.int32)
        if self.kind == "int8":
            scales = self.rng.uniform(0.001, 0.004, n).astype(np.float32)
            data = self.rng.integers(-127, 128, shape).astype(np.int8)
            made = self.tensor(shape, "int8", scales, 0, data, axis)
        else:
            scales = np.float32(0.003)
            made = self.tensor(shape, "uint8", scales, 119, self.rng.integers(0, 256, shape).astype(np.uint8))
        return [made, self.tensor((n,), "int32", np.float32(0.05) * scales, 0, bias)]

    def add(
        self, builtin: str, inputs: Sequence[int], outputs: int | Sequence[int], kind: str = "", **fields: Any
    ) -> Any:
        """kind: of the options, by the schema's name; returns ``outputs``."""
        code, op = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, builtin)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), fields.pop("version", 1)
        code.customCode = fields.pop("custom", None)
        self.codes.append(code)
        op.opcodeIndex, op.inputs = len(self.codes) - 1, [*inputs]
        op.outputs = [outputs] if isinstance(outputs, int) else [*outputs]
        if kind:
            op.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            op.builtinOptions = getattr(schema, kind + "T")()
            for field, value in fields.items():
                assert hasattr(op.builtinOptions, field), field
                setattr(op.builtinOptions, field, value)
        self.operators.append(op)
        return outputs

    def write(self, inputs: Sequence[int], outputs: Sequence[int], subgraphs: int = 1) -> bytes:
        sub, made = schema.SubGraphT(), schema.ModelT()
        sub.tensors, sub.operators, sub.inputs, sub.outputs = self.tensors, self.operators, [*inputs], [*outputs]
        made.version, made.subgraphs, made.buffers, made.operatorCodes = 3, [sub] * subgraphs, self.buffers, self.codes
        builder = flatbuffers.Builder(1 << 12)
        builder.Finish(made.Pack(builder), b"TFL3")
        return bytes(builder.Output())
