"""Raw tensors and .npy files, without trusting either."""

from __future__ import annotations

import ast
import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.errors import InputError

Array = NDArray[np.generic]
DTYPES: dict[str, np.dtype[Any]] = {
    "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8), "s32": np.dtype("<i4"), "f32": np.dtype("<f4")
}  # fmt: skip
_NPY_DTYPES = {dtype.str: dtype for dtype in DTYPES.values()}
_MAX_NPY_HEADER = 4096


class Info(Protocol):
    """What is read of ``agent.engine.TensorInfo``."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


def from_raw(payload: bytes, info: Info) -> Array:
    """Little-endian, row-major bytes in the input's own dtype, or in f32. Raises ``InputError`` for another size."""
    count = math.prod(info.shape)
    own = DTYPES[info.dtype]
    for dtype in (own, DTYPES["f32"]):
        if len(payload) == count * dtype.itemsize:
            return np.frombuffer(payload, dtype).reshape(info.shape)
    raise InputError(
        f"a raw tensor for input '{info.name}' has {count * own.itemsize} bytes ({info.dtype} {list(info.shape)}), "
        f"or {count * 4} as f32; this payload has {len(payload)}"
    )


def from_npy(payload: bytes) -> Array:
    """An array of u8, s8, s32 or f32 from a .npy file; its header is read within bounds, unlike numpy.load's."""
    if len(payload) < 12 or payload[:6] != b"\x93NUMPY" or payload[6] not in (1, 2, 3):
        raise InputError("not a .npy file of version 1, 2 or 3")
    wide = payload[6] > 1
    start = 12 if wide else 10
    length = int.from_bytes(payload[8:start], "little")
    if length > _MAX_NPY_HEADER or start + length > len(payload):
        raise InputError(f"the .npy header claims {length} bytes; at most {_MAX_NPY_HEADER} are taken")
    try:
        header = ast.literal_eval(payload[start : start + length].decode("latin-1").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as e:
        raise InputError("the .npy header is damaged") from e
    if not isinstance(descr, str) or descr not in _NPY_DTYPES:
        raise InputError(f".npy dtype {descr!r} is not taken; use uint8, int8, int32 or float32, little-endian")
    if not (isinstance(shape, tuple) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**31 for n in shape)):
        raise InputError("the .npy shape is not a tuple of at most 8 sizes")
    dtype, count = _NPY_DTYPES[descr], math.prod(shape)
    body = payload[start + length :]
    if len(body) != count * dtype.itemsize:
        raise InputError(f"the .npy file holds {len(body)} bytes of data, its header asks for {count * dtype.itemsize}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran is True else "C")
