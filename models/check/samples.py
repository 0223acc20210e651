"""What both sides are given: seeded noise, or the pictures and arrays of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent import graph as g
from agent.arithmetic import QUANTIZED
from agent.engine.engine import TensorInfo, quantize
from agent.errors import InputError, Int8dError
from agent.modelfile import Model
from agent.wire.images import ImageDecoder
from agent.wire.tensors import from_npy

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
_NUMPY = {"u8": np.uint8, "s8": np.int8, "s32": np.int32, "f32": np.float32}
Arrays = dict[str, np.ndarray]


def noise(model: Model, count: int, seed: int = 0) -> Iterator[Arrays]:
    """Inputs in the graph's containers: every byte as likely as any other for quantized ones, and for an f32 one that
    is quantized at once what the bytes stand for; a normal distribution for other f32, 0 and 1 for s32."""
    graph = model.header.graph
    tensors = {t.name: t for t in graph.tensors}
    stored = {n.input: tensors[n.output] for n in graph.nodes if isinstance(n, g.Quantize)}
    rng = np.random.default_rng(seed)
    for _ in range(count):
        inputs: Arrays = {}
        for name in graph.inputs:
            t = tensors[name]
            q = stored.get(name, t)
            if q.dtype in QUANTIZED:
                array = rng.integers(0, 256, t.shape).astype(np.uint8).view(_NUMPY[q.dtype])
                if t.dtype == "f32":
                    array = (array.astype(np.float32) - np.float32(q.zero_point)) * np.float32(q.scale)
            elif t.dtype == "f32":
                array = rng.standard_normal(t.shape).astype(np.float32)
            else:
                array = rng.integers(0, 2, t.shape).astype(np.int32)
            inputs[name] = array
        yield inputs


def folder(model: Model, path: Path) -> list[Arrays]:
    """The pictures (as the model's preprocessing has them) and .npy arrays of a folder, in the order of their names.

    Raises ``InputError`` with the file's name for what does not fit, and where there is nothing.
    """
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder")
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (*PICTURES, ".npy"))
    if not files:
        raise InputError(f"{path} holds no pictures ({', '.join(PICTURES)}) and no .npy arrays")
    graph = model.header.graph
    if len(graph.inputs) != 1:
        raise InputError(f"the model has {len(graph.inputs)} inputs: only seeded noise can be taken, without --inputs")
    tensor = next(t for t in graph.tensors if t.name == graph.inputs[0])
    info = TensorInfo(tensor.name, tensor.shape, tensor.dtype, tensor.scale, tensor.zero_point)
    decoder = ImageDecoder(model.header.preprocess, info) if model.header.preprocess else None
    taken = []
    for file in files:
        try:
            taken.append({tensor.name: _array(file, tensor, decoder)})
        except Int8dError as e:
            raise InputError(f"{file}: {e}") from e
    return taken


def _array(file: Path, tensor: g.Tensor, decoder: ImageDecoder | None) -> np.ndarray:
    if file.suffix.lower() != ".npy":
        if decoder is None:
            raise InputError("the model takes no pictures: its file has no preprocessing")
        return decoder.decode(file.read_bytes())
    array = from_npy(file.read_bytes())
    if array.shape == tensor.shape[1:] and tensor.shape[0] == 1:
        array = array[None]
    if array.dtype == np.float32 and tensor.dtype in QUANTIZED and array.shape == tensor.shape:
        array = quantize(array, tensor)
    if array.shape != tensor.shape or array.dtype != _NUMPY[tensor.dtype]:
        raise InputError(f"{array.dtype} {list(array.shape)}, the model takes {tensor.dtype} {list(tensor.shape)}")
    return array
