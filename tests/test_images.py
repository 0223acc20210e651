"""Pictures: the folded table is the arithmetic, and hostile files cost nothing."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from agent.engine import TensorInfo
from agent.errors import InputError
from agent.modelfile import Preprocess
from agent.wire import images
from agent.wire.images import ImageDecoder
from agent.wire.limits import Limits
from tests.test_bad_input import huge_png

SCALE = float(np.float32(0.0187))
INFO = TensorInfo("x", (1, 24, 32, 3), "u8", SCALE, 114)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 24, width: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("dtype", ["u8", "s8"])
def test_the_table_is_normalization_and_quantization_in_one(dtype: str) -> None:
    info = TensorInfo("x", (1, 24, 32, 3), dtype, SCALE, 114 if dtype == "u8" else -14)
    got = ImageDecoder(Preprocess("x", mean=MEAN, std=STD), info).decode(encode(noise()))
    x = ((np.asarray(noise(), np.float64) / 255 - MEAN) / STD).astype(np.float32)
    low, high = (0, 255) if dtype == "u8" else (-128, 127)
    expected = np.clip(np.rint(x / np.float32(SCALE)) + info.zero_point, low, high)
    assert np.array_equal(got[0], expected)


def test_float_inputs_get_floats() -> None:
    info = TensorInfo("x", (1, 24, 32, 3), "f32", 0, 0)
    got = ImageDecoder(Preprocess("x", mean=(0.5,), std=(0.5,)), info).decode(encode(noise()))
    assert np.array_equal(got[0], ((np.asarray(noise(), np.float64) / 255 - 0.5) / 0.5).astype(np.float32))


def test_resize_of_the_shorter_side_then_crop_from_the_centre() -> None:
    info = TensorInfo("x", (1, 24, 24, 3), "u8", float(np.float32(1 / 255)), 0)
    source = noise(90, 60)
    got = ImageDecoder(Preprocess("x", resize=30, crop=(24, 24)), info).decode(encode(source))
    expected = source.resize((30, 45), Image.Resampling.BILINEAR).crop((3, 10, 27, 34))
    assert np.array_equal(got[0], np.asarray(expected))


def test_every_mode_becomes_the_models_mode() -> None:
    info = TensorInfo("x", (1, 24, 32, 1), "u8", float(np.float32(1 / 255)), 0)
    decoder = ImageDecoder(Preprocess("x", mode="L"), info)
    grey = noise().convert("L")
    assert np.array_equal(decoder.decode(encode(grey))[0, :, :, 0], np.asarray(grey))
    for mode in ("RGB", "P", "RGBA", "1", "LA", "CMYK"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        assert decoder.decode(encode(noise().convert(mode), kind)).shape == info.shape
    deep = Image.fromarray((np.asarray(grey, np.uint16) * 257).astype(np.uint16))
    assert np.array_equal(decoder.decode(encode(deep))[0, :, :, 0], np.asarray(grey))


def test_what_is_see_through_is_black() -> None:
    info = TensorInfo("x", (1, 24, 32, 3), "u8", float(np.float32(1 / 255)), 0)
    picture = noise().convert("RGBA")
    picture.putalpha(0)
    assert not ImageDecoder(Preprocess("x"), info).decode(encode(picture)).any()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_picture_in_bands_gives_the_bytes_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"transparency": 3} if mode in ("L", "P") else {}
    payload = encode(noise(50, 40).convert("L").convert(mode), **options)
    decoder = ImageDecoder(Preprocess("x", mode="L"), TensorInfo("x", (1, 50, 40, 1), "u8", 1 / 255, 0))
    whole = decoder.decode(payload)
    monkeypatch.setattr(images, "_BAND_PIXELS", 7 * 40)
    assert decoder.decode(payload).tobytes() == whole.tobytes()


def test_a_picture_one_pixel_wide_is_not_decoded() -> None:
    decoder = ImageDecoder(Preprocess("x", mode="L"), TensorInfo("x", (1, 8, 8, 1), "u8", 1 / 255, 0))
    with pytest.raises(InputError, match="sides of 65535"):
        decoder.decode(encode(Image.new("L", (1, 65_536))))


def test_exif_turns_the_picture() -> None:
    info = TensorInfo("x", (1, 32, 24, 3), "u8", float(np.float32(1 / 255)), 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    got = ImageDecoder(Preprocess("x"), info).decode(encode(noise(), exif=exif))
    assert np.array_equal(got[0], np.asarray(noise().transpose(Image.Transpose.ROTATE_270)))


def test_a_header_that_claims_too_much_is_refused_before_decoding() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="30000x30000"):
        ImageDecoder(Preprocess("x"), INFO).decode(huge_png())
    assert time.monotonic() - start < 1
    with pytest.raises(InputError, match="max_pixels"):
        ImageDecoder(Preprocess("x"), INFO, Limits(max_pixels=100)).decode(encode(noise()))


def test_a_needle_is_not_blown_up() -> None:
    with pytest.raises(InputError, match="unequal"):
        ImageDecoder(Preprocess("x", resize=256), INFO).decode(encode(noise(1, 5000)))


def test_mutated_pictures_give_an_array_or_an_input_error() -> None:
    rng = np.random.default_rng(5)
    decoder = ImageDecoder(Preprocess("x"), INFO)
    sources = [encode(noise(), "PNG"), encode(noise(), "JPEG"), encode(noise(), "BMP"),
               encode(noise().convert("P"), "PNG")]  # fmt: skip
    for i in range(2000):
        data = bytearray(sources[i % len(sources)])
        for at in rng.integers(0, len(data), rng.integers(1, 8)):
            data[at] = rng.integers(0, 256)
        if rng.random() < 0.3:
            data = data[: rng.integers(0, len(data))]
        try:
            assert decoder.decode(bytes(data)).shape == INFO.shape
        except InputError:
            pass


def test_other_formats_are_not_opened() -> None:
    with pytest.raises(InputError, match="JPEG, PNG or BMP"):
        ImageDecoder(Preprocess("x"), INFO).decode(b"GIF89a" + bytes(100))
