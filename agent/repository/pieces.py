"""A repository's files in pieces over MQTT: what a device asks, what ``int8d-make serve --mqtt`` answers.

    <repository>/get/<device>     {"id": "8f…", "path": "metadata/timestamp.json", "offset": 0, "length": 65536}
    <repository>/piece/<device>   {"id": "8f…", "path": …, "offset": 0, "length": 512, "size": 512, …}\\n<512 bytes>

All is in the payload, so that MQTT 3.1.1 carries it, too. The server answers on the topic of the device that asked, and
on no topic that a request names. Both sides decode what may be hostile: within bounds, typed, never nested.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

MOST = 1 << 18  # bytes of a piece
LEAST = 1024  # a server gives no less, where so much is asked for and there
HEADER_BYTES = 2048  # of a reply before its piece; also of a request
OVERHEAD = HEADER_BYTES + 1024  # of an MQTT packet beyond the piece: the header, the topic
Error = Literal["", "not_found", "failed"]

_Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Crc = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Request(msgspec.Struct, frozen=True):
    """At most ``length`` bytes of a file from ``offset`` on. id: 16 hexadecimal digits, the asker's, in the reply too;
    the same when the same piece is asked for again.
    """

    id: _Id
    path: _Path
    offset: _Count
    length: Annotated[int, msgspec.Meta(ge=1, le=MOST)]


class Header(msgspec.Struct, frozen=True):
    """Of a reply. length, crc32: of the piece, which may be shorter than what was asked for. size: of the whole file.
    version: changes with the file. error: ``not_found``; ``failed``: the server could not read it.
    """

    id: _Id
    path: _Path
    offset: _Count
    length: Annotated[int, msgspec.Meta(ge=0, le=MOST)] = 0
    size: _Count = 0
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    crc32: _Crc = 0
    error: Error = ""


@dataclass(frozen=True)
class Reply:
    """A header, and the bytes that came behind it."""

    header: Header
    piece: bytes

    @property
    def whole(self) -> bool:
        """Whether the piece is as it was sent."""
        return len(self.piece) == self.header.length and zlib.crc32(self.piece) == self.header.crc32


class Malformed(Exception):
    """Neither a request nor a reply."""


def is_repository(topic: str) -> bool:
    """Whether it can be what the topics of a repository lie below."""
    return re.fullmatch(r"[^+#$/\x00-\x20][^+#\x00-\x1f]{,199}", topic) is not None and not topic.endswith("/")


def request_topic(repository: str, device: str) -> str:
    """Where a device asks; ``+`` for all devices."""
    return f"{repository}/get/{device}"


def reply_topic(repository: str, device: str) -> str:
    """Where it is answered."""
    return f"{repository}/piece/{device}"


def encode_request(request: Request) -> bytes:
    return msgspec.json.encode(request)


def decode_request(payload: bytes) -> Request:
    """Raises ``Malformed``."""
    if len(payload) > HEADER_BYTES:
        raise Malformed(f"{len(payload)} bytes are no request")
    try:
        return msgspec.json.decode(payload, type=Request)
    except _BAD as e:
        raise Malformed(str(e)) from e


def answer(request: Request, piece: bytes, size: int, version: str) -> bytes:
    """A reply's payload, with a piece of the file."""
    header = Header(request.id, request.path, request.offset, len(piece), size, version, zlib.crc32(piece))
    return msgspec.json.encode(header) + b"\n" + piece


def refusal(request: Request, error: Error) -> bytes:
    """A reply's payload, without."""
    return msgspec.json.encode(Header(request.id, request.path, request.offset, error=error)) + b"\n"


def decode_reply(payload: bytes) -> Reply:
    """Raises ``Malformed``; whether the piece is ``whole`` is the caller's to see."""
    end = payload.find(b"\n", 0, HEADER_BYTES)
    if end < 0:
        raise Malformed("a reply without a header")
    try:
        header = msgspec.json.decode(payload[:end], type=Header)
    except _BAD as e:
        raise Malformed(str(e)) from e
    return Reply(header, payload[end + 1 :])
