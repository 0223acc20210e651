"""HTTP/1.1 requests and responses as bytes, read strictly: what RFC 9112 lets a server refuse is refused.

No chunked bodies, no folded lines, no bare line feeds, no second Content-Length: where two parsers could disagree about
where a request ends, there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[ \t\x21-\x7e\x80-\xff]*)?)?)")
_ONCE = ("content-length", "content-type", "host", "expect", "inference-header-content-length")


class Refused(Exception):
    """A request that can't be read, and after which the connection ends. status: what it is answered with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Head:
    """A request without its body. fields: by name in lower case; length: bytes of the body."""

    method: str
    path: str
    query: str
    fields: dict[str, str]
    length: int
    keep_alive: bool


@dataclass
class Response:
    """What to answer. sent(whether) is called once it is written, or could not be."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    fields: dict[str, str] = field(default_factory=dict)
    sent: Callable[[bool], None] = lambda whether: None


def parse_head(text: bytes) -> Head:
    """A request's head, without the empty line that ends it. Raises ``Refused``."""
    first, *lines = text.split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise Refused(400, "not a request line of HTTP/1.1")
    fields: dict[str, str] = {}
    for line in lines:
        parts = _FIELD.fullmatch(line)
        if parts is None:
            raise Refused(400, "a line of the header is no field of HTTP/1.1")
        name, value = parts[1].decode("ascii").lower(), parts[2].decode("latin-1").rstrip(" \t")
        if name in fields:
            if name in _ONCE:
                raise Refused(400, f"the header has two fields '{name}'")
            value = f"{fields[name]}, {value}"
        fields[name] = value
    minor = found[3]
    if minor == b"1" and "host" not in fields:
        raise Refused(400, "the header has no field 'host'")
    if "transfer-encoding" in fields:
        raise Refused(411, "a body must come whole, with its Content-Length")
    length = fields.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise Refused(400, f"Content-Length '{length[:40]}' is no number of bytes")
    path, _, query = found[2].decode("ascii").partition("?")
    options = [o.strip().lower() for o in fields.get("connection", "").split(",")]
    keep_alive = "close" not in options and (minor == b"1" or "keep-alive" in options)
    return Head(found[1].decode("ascii"), path, query, fields, int(length), keep_alive)


def to_bytes(response: Response, keep_alive: bool, head_only: bool = False) -> bytes:
    """The response as it is sent. head_only: as the answer to HEAD."""
    status = HTTPStatus(response.status)
    fields = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Connection": "keep-alive" if keep_alive else "close",
        **response.fields,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode("latin-1")
    return head if head_only else head + response.body
