"""What a float model is calibrated on: the pictures and .npy arrays of a folder, as its input.

A picture goes through the preprocessing that the model file will have, so that a device prepares it in the same way.
An array is taken as it is, [c, h, w] or [n, c, h, w] f32, or whatever shape the input has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from agent import graph as g
from agent.engine import TensorInfo
from agent.errors import InputError, ModelError
from agent.wire.images import ImageDecoder
from agent.wire.tensors import from_npy
from models.intake.source import Imported, picture_preprocess

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
Pixels = Literal["raw", "0..1", "-1..1", "imagenet"]


def usual_pixels(shape: Sequence[int]) -> Pixels:
    """What a float input's pixels mean where nobody says it: ImageNet's normalization for three channels."""
    return "imagenet" if len(shape) == 4 and shape[1] == 3 else "0..1"


def samples(folder: Path, shape: Sequence[int], preprocess: str | None = None) -> list[torch.Tensor]:
    """f32 tensors of torch's ``shape``, in the order of the files' names.

    preprocess: as ``--preprocess``. Raises ``ModelError`` with the file's name for what does not fit, and where there
    is nothing.
    """
    if not folder.is_dir():
        raise ModelError(f"--calibrate {folder}: there is no such folder")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (*PICTURES, ".npy"))
    if not files:
        raise ModelError(f"--calibrate {folder}: it holds no pictures ({', '.join(PICTURES)}) and no .npy arrays")
    decoder = _decoder(shape, preprocess)
    taken = []
    for file in files:
        try:
            taken.append(_sample(file, tuple(shape), decoder))
        except InputError as e:
            raise ModelError(f"--calibrate: {file}: {e}") from e
    return taken


def as_graph(samples: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Views of samples in the graph's layout: [n, h, w, c] for [n, c, h, w], the rest as it is."""
    return [(x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy() for x in samples]


def _decoder(shape: Sequence[int], preprocess: str | None) -> ImageDecoder | None:
    if len(shape) != 4 or shape[0] != 1:
        return None
    x = g.Tensor("x", (1, shape[2], shape[3], shape[1]), "f32")
    alone = Imported(g.Graph((x,), (), (x.name,), (x.name,)), {}, pixels=usual_pixels(shape))
    pre = picture_preprocess(alone, preprocess)
    return None if pre is None else ImageDecoder(pre, TensorInfo(x.name, x.shape, x.dtype, 0.0, 0))


def _sample(file: Path, shape: tuple[int, ...], decoder: ImageDecoder | None) -> torch.Tensor:
    if file.suffix.lower() != ".npy":
        if decoder is None:
            raise InputError(f"the model takes no picture, but {list(shape)}; give .npy arrays")
        return torch.from_numpy(np.ascontiguousarray(decoder.decode(file.read_bytes()).transpose(0, 3, 1, 2)))
    array = from_npy(file.read_bytes())
    if array.shape == shape[1:] and shape[0] == 1:
        array = array[None]
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(f"{array.dtype} {list(array.shape)}, the model takes float32 {list(shape)}")
    return torch.from_numpy(array.copy())
