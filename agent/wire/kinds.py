"""What a payload is: by its content type, or, where there is none, by its first bytes."""

from __future__ import annotations

from typing import Literal

from agent.errors import InputError

Kind = Literal["image", "json", "npy", "raw"]

_BY_TYPE: dict[str, Kind] = {
    "image/jpeg": "image",
    "image/jpg": "image",
    "image/png": "image",
    "image/bmp": "image",
    "application/json": "json",
    "application/x-npy": "npy",
    "application/octet-stream": "raw",
}
_BY_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"\xff\xd8\xff", "image"),
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"BM", "image"),
    (b"\x93NUMPY", "npy"),
    (b"{", "json"),
)


def kind_of(payload: bytes, content_type: str | None) -> Kind:
    """The payload's kind; ``raw`` where nothing else fits. ``InputError`` for a content type that isn't taken."""
    if content_type:
        name = content_type.split(";")[0].strip().lower()
        if name not in _BY_TYPE:
            raise InputError(f"content type '{name}' is not taken; send one of {', '.join(_BY_TYPE)}")
        return _BY_TYPE[name]
    start = payload[:16]
    for magic, kind in _BY_MAGIC:
        if start.startswith(magic):
            return kind
    return "json" if start.lstrip()[:1] == b"{" else "raw"


def json_size(content_type: str | None) -> int | None:
    """The bytes of JSON in front of binary tensors, where the content type names them: ``…; json-size=123``."""
    if content_type is None or ";" not in content_type:
        return None
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "json-size":
            if not (value.isascii() and value.strip().isdigit() and len(value) < 20):
                raise InputError(f"content type: json-size '{value.strip()}' is no number of bytes")
            return int(value)
    return None
