"""Sparkplug B's payload, as far as an edge node needs it: a writer of births and data, a reader of commands.

The message is ``org.eclipse.tahu.protobuf.Payload`` (Sparkplug 3.0, section 6.4.1) in the wire format of Protocol
Buffers. Field numbers: Payload timestamp 1, metrics 2, seq 3; Metric name 1, alias 2, timestamp 3, datatype 4,
is_null 7, long_value 11, double_value 13, boolean_value 14, string_value 15.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

Value = bool | int | float | str
INT64, DOUBLE, BOOLEAN, STRING = 4, 10, 11, 12
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Metric:
    """A value, milliseconds since 1970 at which it held, and what names it: in a birth both, in data the alias alone.

    value: None stands for null. datatype: 0 leaves it out.
    """

    value: Value | None
    timestamp: int
    name: str | None = None
    alias: int | None = None
    datatype: int = 0


def datatype(value: Value) -> int:
    """Sparkplug's number for a value's type."""
    return BOOLEAN if isinstance(value, bool) else INT64 if isinstance(value, int) else DOUBLE if isinstance(
        value, float) else STRING  # fmt: skip


def encode(metrics: Iterable[Metric], timestamp: int, seq: int | None) -> bytes:
    """seq: None leaves it out, as NDEATH has to."""
    out = bytearray(_number(1, timestamp))
    for metric in metrics:
        out += _bytes(2, _metric(metric))
    if seq is not None:
        out += _number(3, seq)
    return bytes(out)


def _metric(metric: Metric) -> bytes:
    out = bytearray()
    if metric.name is not None:
        out += _bytes(1, metric.name.encode(errors="replace"))
    if metric.alias is not None:
        out += _number(2, metric.alias)
    out += _number(3, metric.timestamp)
    if metric.datatype:
        out += _number(4, metric.datatype)
    value = metric.value
    if value is None:
        out += _number(7, 1)
    elif isinstance(value, bool):
        out += _number(14, value)
    elif isinstance(value, int):
        out += _number(11, value & _MASK)  # two's complement
    elif isinstance(value, float):
        out += _varint(13 << 3 | _FIXED64) + struct.pack("<d", value)
    else:
        out += _bytes(15, value.encode(errors="replace"))
    return bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def wants(payload: bytes, name: str) -> bool:
    """Whether a command sets the metric ``name`` to true. Raises ValueError for what is no payload."""
    for field, value in _fields(payload):
        if field != 2 or not isinstance(value, bytes):
            continue
        metric = dict(_fields(value))
        if metric.get(1) == name.encode() and metric.get(14) == 1:
            return True
    return False


def _fields(data: bytes) -> Iterable[tuple[int, int | bytes]]:
    """Field numbers with numbers or bytes, as they come."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if size > len(data) - at:
            raise ValueError("cut short")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if at + i >= len(data):
            raise ValueError("cut short")
        value |= (data[at + i] & 0x7F) << 7 * i
        if data[at + i] < 0x80:
            return value & _MASK, at + i + 1
    raise ValueError("a number of more than ten bytes")
