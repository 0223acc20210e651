"""A TFLite file as plain data: tensors, operators, options; nothing in it is believed.

The flatbuffers library follows offsets without a verifier: it can be led anywhere inside the file, or raise anything,
but never read beyond its buffer. So every access is within ``bounded``, which makes one error of all of them; counts,
names and shapes are checked before something is made of them, and constants are views of the file.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tflite

from agent.errors import ModelError
from agent.validate import Limits

LIMITS = Limits(elements=1 << 24)  # a map of 4096 x 4096: its golden outputs are computed here
_NAME = 1024  # characters
_EDGES = 4096  # inputs or outputs of an operator
_TYPES: dict[int, str] = {v: k.lower() for k, v in vars(tflite.TensorType).items() if isinstance(v, int)}
_OPERATORS: dict[int, str] = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
_NUMPY = {"uint8": np.uint8, "int8": np.int8, "int32": np.int32, "int64": np.int64, "float32": np.float32,
          "bool": np.uint8}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """scales, zero_points: empty where it is not quantized; several along ``axis`` where it is per channel."""

    index: int
    name: str
    shape: tuple[int, ...]
    dynamic: tuple[int, ...]  # axes of unknown extent
    type: str
    scales: np.ndarray  # f32
    zero_points: np.ndarray  # s64
    axis: int
    data: np.ndarray | None  # a constant's, as bytes
    trouble: str  # why it can't be taken, or ""

    def array(self) -> np.ndarray:
        """A constant's value. Raises ``ModelError`` where it is none, or its size does not fit its shape."""
        if self.data is None:
            raise ModelError(f"'{self.name}' must be a constant")
        if self.trouble:
            raise ModelError(self.trouble)
        if self.type not in _NUMPY:
            raise ModelError(f"the constant '{self.name}' is {self.type}; taken are {', '.join(_NUMPY)}")
        kind = np.dtype(_NUMPY[self.type])
        if math.prod(self.shape) * kind.itemsize != self.data.nbytes:
            raise ModelError(f"the constant '{self.name}' has {self.data.nbytes} bytes, which shape {list(self.shape)} "
                             f"of {self.type} does not fill")  # fmt: skip
        values = self.data.view(kind.newbyteorder("<")).reshape(self.shape)
        return values.astype(kind, copy=kind.itemsize > 1)  # a copy is aligned


@dataclass(frozen=True)
class Operator:
    """inputs: tensor indices, -1 for an optional one that is missing."""

    index: int
    name: str  # ADD, CONV_2D, …; of a custom one, its own
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    _raw: Any
    _path: str

    def option(self, kind: str, field: str) -> Any:
        """A field of the operator's options, a number: ``option("Conv2DOptions", "StrideH")``, or its default."""
        with bounded(self._path):
            options, table = getattr(tflite, kind)(), self._raw.BuiltinOptions()
            said = self._raw.BuiltinOptionsType()
            if table is not None and said == getattr(tflite.BuiltinOptions, kind):
                options.Init(table.Bytes, table.Pos)
            elif said == 0:
                options._tab = _Absent()
            else:
                raise ModelError(f"its options are not {kind}")
            return getattr(options, field)()


@dataclass(frozen=True)
class Source:
    """The only subgraph of a file."""

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bytes: int


@contextlib.contextmanager
def bounded(path: str) -> Iterator[None]:
    """Everything that damaged bytes can raise becomes one ``ModelError``."""
    try:
        yield
    except ModelError:
        raise
    except Exception as e:  # struct.error, ValueError, TypeError, OverflowError, …: they have no common root
        raise ModelError(f"{path}: not a readable TFLite file ({type(e).__name__}: {e}); fetch it again") from e


def open_model(path: str) -> Source:
    """Reads a file. Raises ``ModelError`` where it is damaged, or uses what has no form here at all."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise ModelError(f"{path}: can't be read ({e.strerror})") from e
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path}: not a readable TFLite file: the mark TFL3 is missing")
    with bounded(path):
        return _Reader(path, data).run()


class _Reader:
    def __init__(self, path: str, data: bytes) -> None:
        self.path, self.size = path, len(data)
        self.model = tflite.Model.GetRootAs(data)

    def damaged(self, why: str) -> ModelError:
        return ModelError(f"{self.path}: not a readable TFLite file: {why}")

    def count(self, count: int, most: int, what: str) -> int:
        if count > most:
            raise self.damaged(f"{count} {what}, of which at most {most} are taken")
        return count

    def run(self) -> Source:
        model = self.model
        if model.SubgraphsLength() != 1:
            raise ModelError(f"{self.path}: {model.SubgraphsLength()} subgraphs; only one can be imported: "
                             "convert the model without control flow and with a single signature")  # fmt: skip
        graph = model.Subgraphs(0)
        tensors = [self.tensor(graph.Tensors(i), i) for i in range(
            self.count(graph.TensorsLength(), LIMITS.tensors, "tensors"))]  # fmt: skip
        operators = [self.operator(graph.Operators(i), i, len(tensors)) for i in range(
            self.count(graph.OperatorsLength(), LIMITS.nodes, "operators"))]  # fmt: skip
        inputs = self.indices(graph.InputsAsNumpy(), graph.InputsLength(), len(tensors), "the graph's inputs")
        outputs = self.indices(graph.OutputsAsNumpy(), graph.OutputsLength(), len(tensors), "the graph's outputs")
        if not inputs or not outputs or min(*inputs, *outputs) < 0:
            raise self.damaged("it needs an input and an output")
        return Source(tensors, operators, inputs, outputs, self.size)

    def indices(self, raw: Any, length: int, tensors: int, what: str) -> tuple[int, ...]:
        if not self.count(length, _EDGES, f"tensors in {what}"):
            return ()
        values = tuple(int(v) for v in raw)
        if not all(-1 <= v < tensors for v in values):
            raise self.damaged(f"{what} name a tensor that does not exist")
        return values

    def tensor(self, t: Any, index: int) -> Tensor:
        name = self.text(t.Name()) or f"tensor_{index}"
        trouble = ""
        shape = () if t.ShapeLength() == 0 else self.vector(t.ShapeAsNumpy(), t.ShapeLength(), LIMITS.rank, name)
        signature = (
            () if t.ShapeSignatureLength() == 0
            else self.vector(t.ShapeSignatureAsNumpy(), t.ShapeSignatureLength(), LIMITS.rank, name)
        )  # fmt: skip
        kind = _TYPES.get(t.Type(), f"type {t.Type()}")
        if t.Sparsity() is not None:
            trouble = f"'{name}' is sparse: convert the model without sparsity, with dense weights"
        elif t.IsVariable():
            trouble = f"'{name}' is a variable: a model with state can't be imported; make the state inputs and outputs"
        scales, zero_points, axis = np.empty(0, np.float32), np.empty(0, np.int64), 0
        q = t.Quantization()
        if q is not None and q.ScaleLength() > 0:
            if q.DetailsType() != 0:
                trouble = f"'{name}' has a quantization of its own kind; only scales and zero points are taken"
            scales = q.ScaleAsNumpy()
            zero_points = q.ZeroPointAsNumpy() if q.ZeroPointLength() else np.zeros(len(scales), np.int64)
            axis = q.QuantizedDimension()
            if len(zero_points) not in (1, len(scales)):
                raise self.damaged(f"'{name}' has {len(scales)} scales and {len(zero_points)} zero points")
            if not np.isfinite(scales).all():
                raise self.damaged(f"'{name}' has a scale that is not a number")
        dynamic = tuple(i for i, d in enumerate(signature) if d < 0)
        return Tensor(
            index, name, shape, dynamic, kind, scales, zero_points, axis, self.data(t.Buffer(), name), trouble
        )

    def data(self, index: int, name: str) -> np.ndarray | None:
        if index == 0:  # the empty one, by convention
            return None
        if index >= self.model.BuffersLength():
            raise self.damaged(f"'{name}' lies in buffer {index}, which does not exist")
        buffer = self.model.Buffers(index)
        if buffer.Offset() > 1:
            raise ModelError(f"{self.path}: '{name}' lies outside the flatbuffer: models over 2 GB are not taken")
        return buffer.DataAsNumpy() if buffer.DataLength() else None

    def vector(self, raw: Any, length: int, most: int, name: str) -> tuple[int, ...]:
        self.count(length, most, f"axes of '{name}'")
        return tuple(int(v) for v in raw)

    def text(self, raw: bytes | None) -> str:
        self.count(len(raw or b""), _NAME, "characters in a name")
        text = (raw or b"").decode("utf-8", "replace")
        return "".join(c if c.isprintable() else "?" for c in text)  # it will stand in messages

    def operator(self, op: Any, index: int, tensors: int) -> Operator:
        if op.OpcodeIndex() >= self.model.OperatorCodesLength():
            raise self.damaged(f"operator {index} has a code that does not exist")
        code = self.model.OperatorCodes(op.OpcodeIndex())
        # Codes up to 126 once were a byte; a file may hold either field.
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = _OPERATORS.get(builtin, f"operator code {builtin}")
        custom = builtin == tflite.BuiltinOperator.CUSTOM
        if custom:
            name = self.text(code.CustomCode()) or "CUSTOM"
        where = f"operator {index} ({name})"
        inputs = self.indices(op.InputsAsNumpy(), op.InputsLength(), tensors, f"the inputs of {where}")
        outputs = self.indices(op.OutputsAsNumpy(), op.OutputsLength(), tensors, f"the outputs of {where}")
        if not outputs or min(outputs) < 0:
            raise self.damaged(f"{where} has no output")
        return Operator(index, name, custom, inputs, outputs, op, self.path)


class _Absent:
    """A table without fields: reading any gives its default."""

    def Offset(self, _: int) -> int:  # the flatbuffers library's name
        return 0
