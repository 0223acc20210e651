"""The model file: one safetensors file that holds everything a device needs.

Its tensors are the graph's constants and ``golden/<i>/in|out/<name>`` arrays; ``__metadata__["int8d"]`` is the
``Header`` as JSON, and ``__metadata__["int8d.statistics"]``, where it is there, ``agent.statistics.Statistics``: apart,
so that an agent that does not know it reads the file all the same. Reading maps the file and copies nothing;
everything is validated before it is handed out.

    model = read("digits.int8.safetensors")
    model.header.graph.inputs, model.constants["conv1.weight"].shape
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.files import write_atomically
from agent.graph import Graph
from agent.statistics import Statistics
from agent.statistics import check as check_statistics
from agent.validate import Limits, validate

FORMAT = 1
_STATISTICS = "int8d.statistics"
_MAX_LABEL = 256  # characters; labels are in each reply
_DTYPES: dict[str, type[np.generic]] = {
    "U8": np.uint8, "I8": np.int8, "I32": np.int32, "F32": np.float32, "I64": np.int64
}  # fmt: skip
_ACTIVATION = {"u8": np.uint8, "s8": np.int8, "s32": np.int32, "f32": np.float32}
Array = NDArray[np.generic]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the graph's input.

    resize: the shorter side, or (height, width); crop: (height, width) from the centre. A picture that does not have
    the input's size after that is resized to it. mean, std: per channel, of pixels scaled to 0..1.
    """

    input: str
    mode: Literal["RGB", "L"] = "RGB"
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Postprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a classifier's output becomes ``classes``: the top_k entries of its last axis."""

    output: str
    softmax: bool = False
    top_k: int = 5


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of the file that is not an array. ``provenance`` tells how it was made: recipe, seed, accuracy."""

    format: int
    name: str
    version: str
    graph: Graph
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    labels: tuple[str, ...] = ()
    provenance: dict[str, str] = {}


@dataclass(frozen=True)
class Golden:
    """Inputs with the outputs that the reference gave."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Model:
    """A validated model; its arrays may be views of a mapped file."""

    header: Header
    constants: dict[str, Array]
    golden: tuple[Golden, ...] = field(default=())
    statistics: Statistics | None = None


def read(path: str | os.PathLike[str], limits: Limits = Limits()) -> Model:
    """Maps and validates a model file. Raises ``ModelError`` where it is missing, damaged or breaks a rule."""
    from safetensors import SafetensorError, safe_open

    try:
        size = os.stat(path).st_size
        _check_header(path, limits)
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            # In the order of their offsets; the library has checked that they leave no gap and fill the file.
            keys = file.offset_keys()
            if len(keys) > limits.arrays:
                raise ModelError(f"{path}: {len(keys):,} arrays, the limit is {limits.arrays:,}")
            shapes = {key: file.get_slice(key) for key in keys}
            described = [(key, s.get_dtype(), tuple(s.get_shape())) for key, s in shapes.items()]
        arrays = _map_arrays(path, size, described)
    except FileNotFoundError as e:
        raise ModelError(f"{path}: there is no such file") from e
    except (SafetensorError, OSError, ValueError, OverflowError) as e:
        raise ModelError(f"{path}: not a readable safetensors file ({e}); fetch or build it again") from e
    if "int8d" not in metadata:
        raise ModelError(f"{path}: a safetensors file, but not an int8d model: it has no 'int8d' metadata")
    try:
        header = msgspec.json.decode(metadata["int8d"], type=Header)
        statistics = None
        if _STATISTICS in metadata:
            statistics = msgspec.json.decode(metadata[_STATISTICS], type=Statistics)
    except (msgspec.DecodeError, RecursionError) as e:
        raise ModelError(f"{path}: the header is damaged or of another version: {e}") from e
    try:
        return assemble(header, arrays, limits, statistics)
    except ModelError as e:
        raise ModelError(f"{path}: {e}") from e


def _check_header(path: str | os.PathLike[str], limits: Limits) -> None:
    """Before the header is read: what is made of it takes many times its size."""
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > limits.header:
        raise ModelError(
            f"{path}: as a safetensors file it would have a header of {header:,} bytes, the limit is "
            f"{limits.header:,}; is it a model file?"
        )


def _map_arrays(
    path: str | os.PathLike[str], size: int, described: list[tuple[str, str, tuple[int, ...]]]
) -> dict[str, Array]:
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    arrays: dict[str, Array] = {}
    for key, dtype, shape in described:
        if dtype not in _DTYPES:
            raise ValueError(f"tensor '{key}' has dtype {dtype}; allowed are {', '.join(_DTYPES)}")
        kind = np.dtype(_DTYPES[dtype])
        count = int(np.prod(shape, dtype=np.int64))
        array: Array = np.frombuffer(mapped, kind, count, start) if count else np.empty(0, kind)
        if array.ctypes.data % kind.itemsize:  # only a file that another writer made
            array = array.copy()
        arrays[key] = array.reshape(shape)
        start += count * kind.itemsize
    return arrays


def assemble(
    header: Header, arrays: dict[str, Array], limits: Limits = Limits(), statistics: Statistics | None = None
) -> Model:
    """Sorts a file's arrays into constants and golden ones, and validates all. Raises ``ModelError``."""
    if header.format != FORMAT:
        raise ModelError(f"format {header.format} is not supported here, only {FORMAT}: update int8d")
    constants = {k: v for k, v in arrays.items() if not k.startswith("golden/")}
    validate(header.graph, constants, limits)
    _validate_processing(header)
    if statistics is not None:
        post = header.postprocess
        classes = next((t.shape[-1] for t in header.graph.tensors if post is not None and t.name == post.output), 0)
        check_statistics(statistics, header.graph, classes)
    golden = _golden(header.graph, {k: v for k, v in arrays.items() if k not in constants})
    return Model(header, constants, golden, statistics)


def _validate_processing(header: Header) -> None:
    graph = header.graph
    tensors = {t.name: t for t in graph.tensors}
    pre, post = header.preprocess, header.postprocess
    if pre is not None:
        channels = 3 if pre.mode == "RGB" else 1
        shape = tensors[pre.input].shape if pre.input in graph.inputs else ()
        if len(shape) != 4 or shape[0] != 1 or shape[3] != channels:
            raise ModelError(f"preprocess: '{pre.input}' is not an input of shape [1, h, w, {channels}]")
        if len(pre.mean) not in (1, channels) or len(pre.std) not in (1, channels) or min(pre.std) <= 0:
            raise ModelError(f"preprocess: mean and std need 1 or {channels} values, std above zero")
        sizes = [pre.resize] if isinstance(pre.resize, int) else list(pre.resize or ())
        if not all(0 < s <= 16384 for s in (*sizes, *(pre.crop or ()))):
            raise ModelError("preprocess: resize and crop lie in 1..16384")
    if post is not None:
        if post.output not in graph.outputs or tensors[post.output].dtype != "f32":
            raise ModelError(f"postprocess: '{post.output}' is not an f32 output of the graph")
        if post.top_k < 1:
            raise ModelError("postprocess: top_k must be 1 or more")
        longest = max(map(len, header.labels), default=0)
        if longest > _MAX_LABEL:
            raise ModelError(f"a label has {longest} characters; at most {_MAX_LABEL} are taken")
        if header.labels and len(header.labels) != tensors[post.output].shape[-1]:
            raise ModelError(f"{len(header.labels)} labels for {tensors[post.output].shape[-1]} classes")


def _golden(graph: Graph, arrays: dict[str, Array]) -> tuple[Golden, ...]:
    tensors = {t.name: t for t in graph.tensors}
    pairs: dict[int, Golden] = {}
    for key, array in arrays.items():
        _, number, side, name = [*key.split("/", 3), "", "", ""][:4]
        names = graph.inputs if side == "in" else graph.outputs if side == "out" else ()
        if not number.isdecimal() or len(number) > 4 or name not in names:
            raise ModelError(f"'{key}' is not golden/<number>/in|out/<input or output>")
        tensor = tensors[name]
        if array.dtype != _ACTIVATION[tensor.dtype] or array.shape != tensor.shape:
            raise ModelError(f"'{key}' does not have the tensor's shape and dtype")
        golden = pairs.setdefault(int(number), Golden({}, {}))
        (golden.inputs if side == "in" else golden.outputs)[name] = array
    for index, golden in pairs.items():
        if set(golden.inputs) != set(graph.inputs) or set(golden.outputs) != set(graph.outputs):
            raise ModelError(f"golden/{index} does not hold every input and output")
    return tuple(pairs[i] for i in sorted(pairs))


def write(path: str | os.PathLike[str], model: Model) -> None:
    """Validates and writes a model file, whole or not at all; the same model gives the same bytes."""
    from safetensors.numpy import save

    arrays = dict(model.constants)
    for i, golden in enumerate(model.golden):
        arrays |= {f"golden/{i}/in/{k}": v for k, v in golden.inputs.items()}
        arrays |= {f"golden/{i}/out/{k}": v for k, v in golden.outputs.items()}
    assemble(model.header, arrays, statistics=model.statistics)
    ordered = {k: np.ascontiguousarray(arrays[k]) for k in sorted(arrays)}
    metadata = {"int8d": msgspec.json.encode(model.header, order="deterministic").decode()}
    if model.statistics is not None:
        metadata[_STATISTICS] = msgspec.json.encode(model.statistics, order="deterministic").decode()
    data = save(ordered, metadata)
    write_atomically(Path(path), data if len(metadata) == 1 else _in_order(data))


def _in_order(data: bytes) -> bytes:
    """safetensors puts several metadata keys in another order each time; here they are sorted."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
