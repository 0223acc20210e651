"""Pictures to input tensors.

Only JPEG, PNG and BMP are opened, and the header's size is checked before a pixel is decoded. Then: turn by EXIF,
convert to the model's mode, resize, crop, and one table a channel, which does all the arithmetic of a pixel at once:

    x = (p / 255 - mean) / std      in double, rounded to fp32
    q = clamp(rint(x / scale) + zp) as ``agent.graph.Quantize``, for a quantized input
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin

from agent.engine import TensorInfo
from agent.errors import InputError
from agent.modelfile import Preprocess
from agent.wire.limits import Limits

Array = NDArray[np.generic]
# By their first bytes; Pillow's search through what is registered would cost more than a small picture.
_FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], Image.Image]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
)
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
Image.MAX_IMAGE_PIXELS = None  # our own limit is checked below, on the header
_MAX_SIDE = 65_535  # Pillow keeps a pointer a row, which a picture one pixel wide would make the most of
_BAND_PIXELS = 1 << 20
warnings.filterwarnings("ignore", module=r"PIL\b")  # a sender's picture is no reason to write into our log


class ImageDecoder:
    """Pictures for one input of one model. ``decode`` is pure; a decoder may be shared by threads."""

    def __init__(self, preprocess: Preprocess, info: TensorInfo, limits: Limits = Limits()) -> None:
        self._pre, self._info, self._limits = preprocess, info, limits
        self._tables = pixel_tables(preprocess, info)

    def decode(self, payload: bytes) -> Array:
        """An array of the input's shape and dtype. Raises ``InputError`` for what is no picture or too large."""
        picture = self._open(payload)
        pixels = np.frombuffer(self._fit(picture).tobytes(), np.uint8).reshape(self._info.shape[1:])
        if len(self._tables) == 1:
            return self._tables[0][pixels][None]
        out = np.empty(self._info.shape, self._tables[0].dtype)
        for channel, table in enumerate(self._tables):
            out[0, :, :, channel] = table[pixels[:, :, channel]]
        return cast(Array, out)

    def _open(self, payload: bytes) -> Image.Image:
        try:
            picture = _opened(payload)
            width, height = picture.size
            if width * height > self._limits.max_pixels or max(width, height) > _MAX_SIDE:
                raise InputError(
                    f"the picture is {width}x{height}; at most {self._limits.max_pixels} pixels are decoded "
                    f"(limits.max_pixels), and sides of {_MAX_SIDE}"
                )
            if picture.format == "JPEG":
                self._draft(picture)
            ImageOps.exif_transpose(picture, in_place=True)
            return _to_mode(picture, self._pre.mode)
        except InputError:
            raise
        except Exception as e:  # a decoder of hostile bytes raises anything
            raise InputError(f"not a readable JPEG, PNG or BMP picture ({e})") from e

    def _draft(self, picture: Image.Image) -> None:
        """Lets the JPEG decoder shrink by 2, 4 or 8 while it decodes, never below twice what is needed."""
        height, width = self._info.shape[1:3]
        target = self._pre.resize
        least = max(height, width) if target is None else target if isinstance(target, int) else max(target)
        if min(picture.size) >= 4 * least and self._pre.resize is not None:
            shrink = min(picture.size) // (2 * least)
            picture.draft(None, (picture.width // shrink, picture.height // shrink))

    def _fit(self, picture: Image.Image) -> Image.Image:
        pre, resample = self._pre, _RESAMPLING[self._pre.interpolation]
        if isinstance(pre.resize, int):
            short = min(picture.size)
            size = tuple(max(1, int(pre.resize * side / short)) for side in picture.size)
            if max(size) * min(size) > 4 * self._limits.max_pixels:
                raise InputError(f"the picture's sides, {picture.width}x{picture.height}, are too unequal to resize")
            picture = picture.resize(cast(tuple[int, int], size), resample) if size != picture.size else picture
        elif pre.resize is not None and picture.size != pre.resize[::-1]:
            picture = picture.resize(pre.resize[::-1], resample)
        if pre.crop is not None:
            height, width = pre.crop
            left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
            picture = picture.crop((left, top, left + width, top + height))
        height, width = self._info.shape[1:3]
        return picture if picture.size == (width, height) else picture.resize((width, height), resample)


def _opened(payload: bytes) -> Image.Image:
    """The header read, no pixel yet."""
    for magic, plugin in _FORMATS:
        if payload.startswith(magic):
            return plugin(io.BytesIO(payload))
    raise InputError("not a readable JPEG, PNG or BMP picture (by its first bytes)")


def pixel_tables(preprocess: Preprocess, info: TensorInfo) -> list[Array]:
    """One array of 256 entries, in the input's dtype, for all channels, or one for each."""
    channels = max(len(preprocess.mean), len(preprocess.std))
    means = preprocess.mean * (channels if len(preprocess.mean) == 1 else 1)
    stds = preprocess.std * (channels if len(preprocess.std) == 1 else 1)
    tables: list[Array] = []
    for mean, std in zip(means, stds, strict=True):
        x = ((np.arange(256, dtype=np.float64) / 255 - mean) / std).astype(np.float32)
        if info.dtype == "f32":
            tables.append(x)
            continue
        low, high = (0, 255) if info.dtype == "u8" else (-128, 127)
        q = np.rint(x / np.float32(info.scale))
        q = np.clip(q, low - info.zero_point, high - info.zero_point) + info.zero_point
        tables.append(q.astype(np.uint8 if info.dtype == "u8" else np.int8))
    return tables


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    """In bands, because what lies between the two modes may take many times the picture's own memory."""
    plain = picture.mode == mode and "transparency" not in picture.info
    rows = max(1, _BAND_PIXELS // picture.width)
    if plain or rows >= picture.height:
        return picture if plain else _band_to_mode(picture, mode)
    out = Image.new(mode, picture.size)
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        out.paste(_band_to_mode(picture.crop(box), mode), box)
    return out


def _band_to_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow would clip it, not scale it
        pixels = np.asarray(picture, np.int64)
        picture = Image.fromarray((np.clip(pixels, 0, 65535) // 257).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGBA", rgba.size, (0, 0, 0, 255))  # what is see-through is black
        picture.alpha_composite(rgba)
    return picture if picture.mode == mode else picture.convert(mode)
