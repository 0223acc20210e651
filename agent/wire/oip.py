"""Open Inference Protocol v2 as JSON, with the binary-tensor extension (KServe's specification).

A request is ``{"id"?, "parameters"?, "inputs": [{"name", "shape", "datatype", "data"}], "outputs"?}``. With the
extension, an input has ``parameters.binary_data_size`` instead of ``data``, and its bytes follow the JSON, in order.
The JSON's own length is then what the content type says (``application/json; json-size=123``), or found by reading it.
"""

from __future__ import annotations

import array
import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import InputError

Array = NDArray[np.generic]
_DATATYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype(np.uint8), "INT8": np.dtype(np.int8), "INT32": np.dtype("<i4"), "FP32": np.dtype("<f4")
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DATATYPES.items()}
_MOST_F32 = float(np.finfo(np.float32).max)
_INTEGERS = msgspec.json.Decoder(list[int])
_FLOATS = msgspec.json.Decoder(list[float])


class TensorIn(msgspec.Struct):
    """One input of a request."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: dict[str, Any] = {}


class Request(msgspec.Struct):
    """A request's JSON part."""

    inputs: list[TensorIn]
    id: str | None = None
    parameters: dict[str, Any] = {}


class TensorOut(msgspec.Struct, omit_defaults=True):
    """One output of a reply."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[float] | list[int]


class ClassOut(msgspec.Struct):
    """One entry of a classifier's ``classes``."""

    label: str
    index: int
    probability: float


class Reply(msgspec.Struct, omit_defaults=True):
    """A reply's JSON."""

    model_name: str
    model_version: str
    outputs: list[TensorOut]
    id: str | None = None
    parameters: dict[str, Any] = {}
    classes: list[ClassOut] | None = None


class Wishes(msgspec.Struct, frozen=True):
    """What a request's ``parameters`` ask of the queue, as Triton's do. timeout: microseconds; priority: 0..9."""

    timeout: int | None = None
    priority: int | None = None


class _Front(msgspec.Struct):
    parameters: Wishes = Wishes()


_front = msgspec.json.Decoder(_Front)
_decoder = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()
_LONGEST_US = 10**15  # 31 years; JSON's numbers have no end, clocks have
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what msgspec raises for bytes of any kind


def decode(payload: bytes, json_size: int | None = None) -> tuple[Request, dict[str, Array]]:
    """The request and its arrays by input name. json_size: bytes of its JSON, where known. Raises ``InputError``."""
    text, rest = _split(payload) if json_size is None else (payload[:json_size], payload[json_size:])
    tail = memoryview(rest)  # each of many tensors takes its part without copying the others
    try:
        request = _decoder.decode(text)
    except _UNREADABLE as e:
        raise InputError(f"not an Open Inference Protocol request: {e}") from e
    if not request.inputs:
        raise InputError("the request has no inputs")
    arrays: dict[str, Array] = {}
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise InputError(f"input '{tensor.name}' is given twice")
        arrays[tensor.name], tail = _array(tensor, tail)
    if tail:
        raise InputError(f"{len(tail)} bytes are left behind the binary tensors")
    return request, arrays


def wishes(payload: bytes) -> Wishes:
    """Read before the request is queued; empty where there are none, or none that can be read."""
    if b'"timeout"' not in payload and b'"priority"' not in payload:
        return Wishes()
    try:
        asked = _front.decode(_split(payload)[0]).parameters
        return Wishes(None if asked.timeout is None else min(asked.timeout, _LONGEST_US), asked.priority)
    except (InputError, *_UNREADABLE):
        return Wishes()


def _split(payload: bytes) -> tuple[bytes, bytes]:
    """The JSON text, and the binary tensors behind it."""
    if b"binary_data_size" not in payload:
        return payload, b""
    payload = payload.lstrip(b" \t\r\n")
    try:
        # Latin-1 keeps one character a byte, so that the decoder's end is an offset into the payload.
        _, end = json.JSONDecoder().raw_decode(payload.decode("latin-1"))
    except (ValueError, RecursionError) as e:
        raise InputError(f"not an Open Inference Protocol request: {e}") from e
    return payload[:end], payload[end:]


def _array(tensor: TensorIn, tail: memoryview) -> tuple[Array, memoryview]:
    where = f"input '{tensor.name}'"
    if tensor.datatype not in _DATATYPES:
        raise InputError(f"{where}: datatype '{tensor.datatype}' is not taken; use {', '.join(_DATATYPES)}")
    dtype = _DATATYPES[tensor.datatype]
    if len(tensor.shape) > 8 or min(tensor.shape, default=0) < 0 or max(tensor.shape, default=0) >= 2**31:
        raise InputError(f"{where}: a shape has at most 8 sizes of 0 or more")
    count = math.prod(tensor.shape)
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if not isinstance(size, int) or size != count * dtype.itemsize or size > len(tail):
            raise InputError(f"{where}: binary_data_size {size} does not fit shape and payload")
        return np.frombuffer(tail[:size], dtype).reshape(tensor.shape), tail[size:]
    if count > memoryview(tensor.data).nbytes:  # each element takes a byte of JSON at least
        raise InputError(f"{where}: the data has fewer elements than shape {list(tensor.shape)}")
    numbers = _flat(tensor.data, dtype)
    if numbers is None:
        try:
            numbers = _nested(_flatten(msgspec.json.decode(tensor.data)), dtype)
        except (msgspec.DecodeError, TypeError, ValueError, OverflowError, RecursionError) as e:
            raise InputError(f"{where}: data must be a list of numbers ({e})") from e
    if numbers is None:
        raise InputError(f"{where}: a value lies outside {tensor.datatype}")
    if numbers.size != count:
        raise InputError(f"{where}: {numbers.size} elements, but shape {list(tensor.shape)}")
    return numbers.reshape(tensor.shape), tail


def _flat(data: msgspec.Raw, dtype: np.dtype[Any]) -> Array | None:
    """The common case, for a fraction of the time: a flat list of numbers of one kind. None for any other."""
    try:
        if dtype.kind == "f":
            floats = _FLOATS.decode(data)
            if min(floats, default=0.0) < -_MOST_F32 or max(floats, default=0.0) > _MOST_F32:
                return None
            return np.array(floats, dtype)
        integers = _INTEGERS.decode(data)
        return np.frombuffer(bytes(integers) if dtype == np.uint8 else array.array(dtype.char, integers), dtype)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        return None


def _nested(flat: list[Any], dtype: np.dtype[Any]) -> Array | None:
    """None where a value lies outside the dtype."""
    wide = np.array(flat, np.float64 if dtype.kind == "f" else np.int64)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        return None
    if dtype.kind != "f" and any(type(x) is float and not x.is_integer() for x in flat):
        raise ValueError("a fraction, where whole numbers are needed")
    return wide.astype(dtype)


def _flatten(data: Any) -> list[Any]:
    """Row-major; the protocol allows nested lists. Whole numbers stay whole, so that 1.5 is refused for UINT8."""
    if not isinstance(data, list):
        raise ValueError("not a list")
    while data and isinstance(data[0], list):
        data = [x for row in data for x in row]
    if not all(type(x) in (int, float) for x in data):
        raise ValueError("not all are numbers")
    return list(data)


def encode_request(arrays: Mapping[str, Array]) -> bytes:
    """A request for arrays by input name, with the binary-tensor extension."""
    inputs = [
        {"name": name, "shape": values.shape, "datatype": _NAMES[values.dtype],
         "parameters": {"binary_data_size": values.nbytes}}
        for name, values in arrays.items()
    ]  # fmt: skip
    text: bytes = _encoder.encode({"inputs": inputs})
    return text + b"".join(values.tobytes() for values in arrays.values())


def tensor_out(name: str, values: Array) -> TensorOut:
    """An output as JSON carries it."""
    return TensorOut(name, values.shape, _NAMES[values.dtype], values.ravel().tolist())


def encode(reply: Reply) -> bytes:
    """The reply as JSON."""
    return _encoder.encode(reply)


def error(code: str, message: str, request_id: str | None = None, **parameters: Any) -> bytes:
    """A refusal, as a reply."""
    body: dict[str, Any] = {"error": {"code": code, "message": message}}
    if request_id is not None:
        body["id"] = request_id
    if parameters:
        body["parameters"] = parameters
    return _encoder.encode(body)
