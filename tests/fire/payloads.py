"""A million hostile messages by number: payloads, topics and properties, of a fixed seed.

    Hostile().case(543)

What reaches an agent has passed a broker: topics and strings are valid UTF-8 without control characters. All else is
the sender's to choose. Every case says by which key its reply is known: its correlation, or, where that is not its own,
the topic that the reply must come to.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

from tests.agent_process import picture
from tests.fire.wire import properties
from tests.fuzz.driver import case_rng
from tests.fuzz.mutations import HOSTILE, Rng, mutate_bytes, mutate_json, pick

BASE = b"int8d/box1/v2/models"
ROUTES = """
[[route]]
subscribe = "cameras/+/frame"
model = "digits"
publish = "out/cameras/{1}"
[[route]]
subscribe = "typed/+"
model = "digits"
publish = "out/typed/{1}"
content_type = "image/png"
overload = "latest_per_source"
[[route]]
subscribe = "deep/#"
model = "digits"
publish = "out/deep/{1}"
overload = "drop_oldest"
"""
SUBSCRIPTIONS = [b"out/#", b"mine/#", BASE + b"/+/infer/response/#"]
_TYPES = [
    b"image/png",
    b"image/jpeg",
    b"image/bmp",
    b"application/json",
    b"application/x-npy",
    b"application/octet-stream",
]
_BAD_TYPES = [b"", b";", b"image/png;x=y", b"IMAGE/PNG ", b"image/gif", b"text/html", b"application/x-python-pickle",
              b"x" * 60_000, "größe/ß".encode(), b"application/json; charset=utf-16"]  # fmt: skip
_BAD_TOPICS = [b"", b"#", b"+", b"mine/+", b"mine/#", b"$SYS/broker", b"$share/g/mine", b"$", b"mine/" + b"/" * 300,
               b"mine/" + b"a/" * 1000, b"/" * 65_535]  # fmt: skip
_NUMBERS = [b"", b"0", b"-1", b"1", b"1e9", b"0x10", b"1_000", b"NaN", b"9" * 19, b"-" + b"9" * 18, b"9" * 4299,
            b"-" + b"9" * 4299,
            b"9" * 5000, b" 12 ", "١٢".encode(), b"1.5", b"-9223372036854775808", b"18446744073709551616"]  # fmt: skip
_NAMES = [b"source_timestamp_us", b"timeout_us", b"priority", b"id", b"", b"content-encoding", b"json_size"]


@dataclass(frozen=True)
class Case:
    """A message, and the key of its reply."""

    topic: bytes
    payload: bytes
    properties: bytes
    key: bytes
    kind: str


class Hostile:
    """Makes cases; the seeds are made once."""

    def __init__(self) -> None:
        self._pictures = _pictures()
        self._kinds: list[tuple[str, float, Callable[[Rng], bytes]]] = [
            ("json", 0.30, self._json), ("binary", 0.14, self._binary), ("picture", 0.22, self._picture),
            ("chunks", 0.06, self._chunks), ("npy", 0.12, self._npy), ("raw", 0.10, self._raw),
            ("nonsense", 0.0585, self._nonsense), ("large", 0.001, self._large), ("bomb", 0.0005, self._bomb),
        ]  # fmt: skip
        self._bounds = np.cumsum([share for _, share, _ in self._kinds])

    def case(self, number: int) -> Case:
        """Case ``number``; the same whenever it is asked for."""
        rng = case_rng(number)
        name, _, make = self._kinds[int(np.searchsorted(self._bounds, rng.random() * self._bounds[-1], "right"))]
        payload = make(rng)
        own = b"%08x" % number
        bad_topic = pick(rng, _BAD_TOPICS) if rng.random() < 0.1 else None
        if rng.random() < 0.7:  # known by its correlation, so that topics may be anything
            correlation: bytes | None = own + (bytes(int(pick(rng, [1, 100, 65_527]))) if rng.random() < 0.01 else b"")
            topic = self._topic(rng, own)
            response = bad_topic if bad_topic is not None else pick(rng, [None, b"mine/x", b"mine//", b"mine/y"])
            if rng.random() < 0.005:
                response = b"mine/" + b"t" * 60_000
            key = correlation or b""
        else:
            correlation = pick(rng, [None, b"", b"same", b"\0" * 65_535 if rng.random() < 0.01 else b"\0"])
            topic, key = pick(rng, [(b"cameras/%s/frame", b"out/cameras/%s"), (b"typed/%s", b"out/typed/%s"),
                                    (b"deep/%s/a//b", b"out/deep/%s/a//b")])  # fmt: skip
            topic, key, response = topic % own, key % own, bad_topic
            if response is None and rng.random() < 0.4:
                response = key = b"mine/" + own
        return Case(topic, payload, self._properties(rng, correlation, response), key, name)

    def _topic(self, rng: Rng, own: bytes) -> bytes:
        model, name = b"digits", own
        if rng.random() < 0.1:
            model = pick(rng, [b"", b"nobody", b"$x", b"m" * 30_000, "модель".encode()])
        if rng.random() < 0.01:
            name = pick(rng, [b"", b"$", b"i" * 30_000])
        infer = b"%s/%s/infer" % (BASE, model)
        camera = b"cameras/%s/frame" % pick(rng, [b"", b"$x", b"{1}", b"{2}"])
        return pick(rng, [infer, infer, infer + b"/request/" + name, camera, b"deep/" + b"/" * 120, b"deep/" + own])

    def _properties(self, rng: Rng, correlation: bytes | None, response: bytes | None) -> bytes:
        content_type, user, expiry, form = None, [], None, None
        chance = rng.random(4)
        if chance[0] < 0.3:
            content_type = pick(rng, _TYPES if chance[0] < 0.2 else _BAD_TYPES)
        if chance[1] < 0.2:
            user = [(pick(rng, _NAMES), pick(rng, _NUMBERS)) for _ in range(int(pick(rng, [1, 1, 2, 5])))]
            if chance[1] < 0.001:
                user = user * 300 + [(b"k" * 60_000, b"v" * 60_000)]
        if chance[2] < 0.1:
            expiry = pick(rng, [600, 86_400, 2**31, 2**32 - 1])
        if chance[3] < 0.1:
            form = pick(rng, [0, 1, 2, 255])
        return properties(response, correlation, content_type, user, expiry, form)

    # Payloads

    def _json(self, rng: Rng) -> bytes:
        if rng.random() < 0.1:
            return pick(rng, _TEXTS)
        tree = copy.deepcopy(pick(rng, _TREES))
        for _ in range(int(pick(rng, [0, 1, 1, 2, 3]))):
            if isinstance(tree, dict) and tree:
                mutate_json(rng, tree)
        text = json.dumps(tree, ensure_ascii=bool(rng.random() < 0.5)).encode(errors="surrogatepass")
        return mutate_bytes(rng, text) if rng.random() < 0.25 else text

    def _binary(self, rng: Rng) -> bytes:
        datatype, size = pick(rng, [("UINT8", 64), ("FP32", 256), ("INT8", 64), ("INT32", 256)])
        shape = pick(rng, [[1, 8, 8, 1], [64], [1, 8, 8], [8, 8], [int(pick(rng, HOSTILE)), 1]])
        claimed = size if rng.random() < 0.6 else pick(rng, [*HOSTILE, None, "64", 64.0, [], True])
        tree = {"inputs": [{"name": "x", "shape": shape, "datatype": datatype,
                            "parameters": {"binary_data_size": claimed}}],
                "id": "b"}  # fmt: skip
        if rng.random() < 0.3:
            mutate_json(rng, tree)
        head = json.dumps(tree).encode()
        tail = rng.bytes(size if rng.random() < 0.7 else int(pick(rng, [0, 1, 63, 65, 4096])))
        return mutate_bytes(rng, head + tail) if rng.random() < 0.3 else head + tail

    def _picture(self, rng: Rng) -> bytes:
        data = pick(rng, self._pictures)
        for _ in range(int(pick(rng, [0, 1, 1, 2]))):
            data = mutate_bytes(rng, data)
        return data

    def _chunks(self, rng: Rng) -> bytes:
        """PNG with chunks of any kind and claim, their sums right so that they are read."""
        sides, form = [8, 8], [8, 0, 0, 0, 0]
        if rng.random() < 0.4:
            sides[int(rng.integers(2))] = int(pick(rng, [0, 1, 9, 64, 3000, 2**31 - 1]))
        if rng.random() < 0.4:
            form[int(rng.integers(5))] = int(pick(rng, [1, 2, 3, 4, 6, 16, 255]))
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", *sides, *form))]
        for _ in range(int(rng.integers(0, 4))):
            name = pick(rng, [b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"acTL",
                              b"fcTL", b"fdAT",
                              b"sRGB", b"pHYs", b"cHRM", b"IDAT", b"IEND", b"\0\0\0\0", b"abcd"])  # fmt: skip
            body = pick(rng, [b"", b"x", b"k\0\0" + zlib.compress(bytes(100_000)), rng.bytes(30),
                              b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
                              b"k\0\1\0\0\0" + zlib.compress(b"y" * 1000), struct.pack(">II", 2**31 - 1,
                              0)])  # fmt: skip
            chunks.append((name, body))
        chunks += [(b"IDAT", zlib.compress(bytes(int(pick(rng, [72, 71, 0, 1000]))))), (b"IEND", b"")]
        out = b"\x89PNG\r\n\x1a\n"
        for name, body in chunks:
            out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        return out

    def _npy(self, rng: Rng) -> bytes:
        if rng.random() < 0.3:
            header = pick(rng, _HEADERS)
        else:
            header = b"{'descr': '%s', 'fortran_order': %s, 'shape': %s, }" % (
                pick(rng, [b"|u1", b"|i1", b"<f4", b"<i4", b">f4", b"|O", b"<f8", b"|V8", b"<U4", b""]),
                pick(rng, [b"False", b"True", b"1", b"None"]),
                pick(rng, [b"(1, 8, 8, 1)", b"(8, 8)", b"(64,)", b"()", b"(0,)", b"(-1, 64)", b"(%d,)" % pick(rng,
                HOSTILE), b"[64]",
                           b"(1.0, 64)", b"(True, 64)"]),
            )  # fmt: skip
        length = len(header) if rng.random() < 0.9 else int(pick(rng, HOSTILE)) % 2**16
        data = b"\x93NUMPY" + bytes(pick(rng, [(1, 0), (1, 0), (2, 0), (3, 0), (4, 0), (255, 255)]))
        data += (
            struct.pack("<H" if data[6] == 1 else "<I", length)
            + header
            + rng.bytes(int(pick(rng, [64, 64, 256, 0, 65])))
        )
        return mutate_bytes(rng, data) if rng.random() < 0.2 else data

    def _raw(self, rng: Rng) -> bytes:
        if rng.random() < 0.3:
            return np.array([pick(rng, [np.nan, np.inf, -np.inf, 3e38, 1e-45, 0.5])] * 64, "<f4").tobytes()
        return rng.bytes(int(pick(rng, [64, 64, 256, 0, 1, 63, 65, 255, 257, 1000])))

    def _nonsense(self, rng: Rng) -> bytes:
        """The beginning of something, then bytes."""
        start = pick(rng, [b"{", b"[", b" \n{", b"BM", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY\1\0",
                           b"GIF89a", b"II*\0",
                           b"RIFF\0\0\0\0WEBP", b"\x80\x04\x95", b"PK\3\4", b"%PDF-", b"", b"\0",
                           b"int8d"])  # fmt: skip
        return start + rng.bytes(int(pick(rng, [0, 1, 20, 200, 2000])))

    def _large(self, rng: Rng) -> bytes:
        size = int(pick(rng, [300_000, 1_000_000, 4_000_000]))
        return pick(rng, [
            bytes(size), b"{" + b" " * size, b'{"id":"' + b"x" * size + b'"}', b"[" * size, b'{"a":' * (size // 5),
            b'{"inputs":[{"name":"x","shape":[1,8,8,1],"datatype":"UINT8","data":[' + b"0," * (size // 2) + b"0]}]}",
            b'{"inputs":[' + b'{"name":"x","shape":[],"datatype":"UINT8","data":[1]},' * (size // 60) + b"null]}",
            b'{"binary_data_size":' + b"[" * size,
        ])  # fmt: skip

    def _bomb(self, rng: Rng) -> bytes:
        return pick(rng, _BOMBS)()


def _request(datatype: str, value: float, nested: bool) -> dict[str, Any]:
    data: Any = [value] * 64
    if nested:
        data = [[[[value] for _ in range(8)] for _ in range(8)]]
    return {"id": "r", "parameters": {"source_timestamp_us": 1, "timeout": 60_000_000, "priority": 1},
            "inputs": [{"name": "x", "shape": [1, 8, 8, 1], "datatype": datatype, "data": data}],
            "outputs": [{"name": "logits"}]}  # fmt: skip


_TREES = [
    _request("UINT8", 3, False),
    _request("FP32", 0.5, True),
    _request("INT32", -7, False),
    _request("INT8", 1, True),
]
_GOOD = json.dumps(_TREES[0]).encode()
_TEXTS = [
    b"{", b"{}", b"[]", b"{]", b"null", b'{"inputs":[]}', b'{"inputs":null}', b'{"id":1}', b'{"id":"\\ud800"}',
    b'{"id":"\\u0000"}',
    b"\xef\xbb\xbf{}", b"{\xff}", b"{" * 10_000, b'{"a":' * 10_000, b"[" * 20_000, b'{"a":[' * 5_000,
    b'{"binary_data_size":' * 5_000,
    b'{"inputs":' + b"[" * 5_000 + b"]" * 5_000 + b"}", _GOOD + b"x", b" " * 100 + _GOOD, _GOOD * 2,
    _GOOD.replace(b"3", b"1e999"),
    _GOOD.replace(b"3,", b"-0,", 5), _GOOD.replace(b"[3,", b"[" + b"9" * 5000 + b",", 1), _GOOD.replace(b"3", b"NaN"),
    _GOOD.replace(b"[3,", b"[" + b"[" * 3000 + b"3" + b"]" * 3000 + b",", 1),
    _GOOD.replace(b'"r"', b'"' + b"i" * 100_000 + b'"'),
    _GOOD.replace(b'"r"', b'"\\ud800\\udc00\\n\\u001b[31m"'), _GOOD.replace(b'"inputs"', b'"inputs": [], "inputs"'),
    _GOOD.replace(b'"source_timestamp_us": 1', b'"source_timestamp_us": -9223372036854775808'),
    _GOOD.replace(b'"source_timestamp_us": 1', b'"source_timestamp_us": -' + b"9" * 4000),
    _GOOD.replace(b'"source_timestamp_us": 1', b'"source_timestamp_us": 1e300'),
    _GOOD.replace(b"60000000", b"18446744073709551615"), _GOOD.replace(b"60000000", b"-" + b"9" * 400),
    _GOOD.replace(b'"priority": 1', b'"priority": 99999999999999999999'),
    _GOOD.replace(b'"priority": 1', b'"priority": "high"'),
]  # fmt: skip
_HEADERS = [
    b"(" * 3000, b"-" * 3000 + b"1", b"[" * 100 + b"]" * 100, b"{" * 200, b"1" * 4000, b"1e" + b"9" * 300,
    b"'" * 3001, b"not " * 900 + b"1",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"1," * 1000 + b")}", b"__import__('os').abort()",
    b"{**{}}",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 3900 + b",)}",
    b"{'descr': ['|u1'], 'fortran_order': 0, 'shape': ()}",
    b"{1: 2}", b"\xff" * 50, b"\0" * 50, b"1+1j", b"{[]: 1}", b"{'descr'}", b"b'" + b"\\x41" * 800 + b"'",
]  # fmt: skip


def _pictures() -> list[bytes]:
    """Small pictures of every mode and form that the three formats have, and some of other formats."""
    rng = np.random.default_rng(1)
    grey = Image.fromarray(rng.integers(0, 256, (13, 17), np.uint8).astype(np.uint8))
    found = [picture(i) for i in range(3)]

    def save(image: Image.Image, form: str, **how: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, form, **how)
        found.append(buffer.getvalue())

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        save(grey.convert("L").convert(mode), "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    for mode in ("L", "RGB", "CMYK"):
        save(grey.convert(mode), "JPEG", exif=exif)
        save(grey.convert(mode), "JPEG", progressive=True, quality=30)
    for mode in ("1", "L", "P", "RGB"):
        save(grey.convert(mode), "BMP")
    for form in ("GIF", "TIFF", "ICO", "PPM"):
        save(grey.convert("RGB"), form)
    return found


@cache
def _large_png(width: int, height: int, kind: int, bits: int, channels: int, lace: int = 0) -> bytes:
    """Black; at most 200 MB of pixels are in it, whatever its header says."""
    squeeze, left = zlib.compressobj(1), min(height * (1 + (width * channels * bits + 7) // 8), 200_000_000)
    body = b""
    while left > 0:
        body += squeeze.compress(bytes(min(left, 1 << 20)))
        left -= 1 << 20
    out = b"\x89PNG\r\n\x1a\n"
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, lace))]
    chunks += [(b"PLTE", bytes(768))] if kind == 3 else []
    chunks += [(b"tRNS", b"\0\1")] if kind in (0, 3) else []
    for name, data in (*chunks, (b"IDAT", body + squeeze.flush()), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


@cache
def _large_jpeg(mode: str, progressive: bool) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (5000, 5000)).save(buffer, "JPEG", quality=5, progressive=progressive)
    return buffer.getvalue()


def _large_bmp(bits: int, packed: int) -> bytes:
    head = struct.pack("<IHHIIiiHHIIiiII", 2**31 - 1, 0, 0, 1078, 40, 5000, 5000, 1, bits, packed, 0, 0, 0, 256, 0)
    return b"BM" + head + bytes(1024) + b"\xff\0" * 2000


# Small files of large pictures: as many pixels as are taken (limits.max_pixels), and far more.
_BOMBS: list[Callable[[], bytes]] = [
    *(partial(_large_png, 5000, 5000, *form) for form in ((0, 8, 1), (0, 16, 1), (2, 8, 3), (6, 8, 4), (6, 16, 4),
                                                          (3, 8, 1),
                                                          (4, 8, 2), (0, 1, 1), (2, 16, 3), (2, 8, 3, 1))),
    *(partial(_large_png, *size, 6, 8, 4) for size in ((2**31 - 1, 2**31 - 1), (65_535, 65_535), (1, 25_000_000),
    (25_000_000, 1))),
    partial(_large_jpeg, "RGB", False), partial(_large_jpeg, "CMYK", True), partial(_large_bmp, 24, 0),
    partial(_large_bmp, 8, 1),
]  # fmt: skip
