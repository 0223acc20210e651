"""Messages that only their receiver can read, whatever the broker sees; docs/security.md says what that holds against.

    sender = Sender(identity, to=box)                                   # keys: agent.wire.keys
    request = sender.seal(picture, "image/png", topic, correlation)
    opened = Receiver(box_key).open(request, topic, correlation)        # at the device
    reply = opened.reply(answer, "application/json", reply_topic, correlation)
    answer, content_type = sender.open(reply, reply_topic, correlation, request)

A sealed message is ``i8h1``, the sender's public key (32 bytes), the encapsulated key (32), and the ciphertext (a tag
of 16 at its end). Sealed are the content type, in a reply the request's encapsulated key, and the payload. Bound to it
by HPKE's ``info``: its kind, the topic it was published to, and the correlation data.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agent.errors import Int8dError
from agent.wire.hpke import KEY_BYTES, OpenError, PrivateKey, open_, seal

MAGIC = b"i8h1"
_HEAD = len(MAGIC) + 2 * KEY_BYTES


class SealError(Int8dError):
    """A message on an encrypted route that can't be taken. code: ``not_encrypted``, ``not_opened``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Opened:
    """A request as its sender sealed it. sender: its public key; known: it is one whose requests are taken."""

    payload: bytes
    content_type: str | None
    sender: bytes
    known: bool
    _key: PrivateKey
    _enc: bytes

    def reply(self, payload: bytes, content_type: str, topic: str, correlation: bytes | None) -> bytes:
        """A reply that the request's sender alone can read."""
        plain = _text(content_type) + self._enc + payload
        return _message(plain, self._key, self.sender, _info(b"reply", topic, correlation))


class Receiver:
    """The device's side. senders: public keys of those whose requests are taken; empty: anybody's."""

    def __init__(self, key: PrivateKey, senders: Collection[bytes] = ()) -> None:
        self._key, self._senders = key, frozenset(senders)

    def open(self, message: bytes, topic: str, correlation: bytes | None) -> Opened:
        """Raises ``SealError``."""
        sender, enc, plain = _open(message, self._key, _info(b"request", topic, correlation))
        content_type, payload = _split(plain)
        known = not self._senders or sender in self._senders
        return Opened(payload, content_type, sender, known, self._key, enc)


class Sender:
    """The other side: seals for the owner of ``to``, and takes replies from nobody else."""

    def __init__(self, identity: PrivateKey, to: bytes) -> None:
        self._identity, self._to = identity, to

    def seal(self, payload: bytes, content_type: str | None, topic: str, correlation: bytes | None) -> bytes:
        """A request. Publish the same bytes when it is sent again, so that the agent knows it again."""
        info = _info(b"request", topic, correlation)
        return _message(_text(content_type or "") + payload, self._identity, self._to, info)

    def open(self, reply: bytes, topic: str, correlation: bytes | None, request: bytes) -> tuple[bytes, str | None]:
        """The payload and content type of the reply to ``request``. Raises ``SealError``."""
        sender, _, plain = _open(reply, self._identity, _info(b"reply", topic, correlation))
        content_type, rest = _split(plain)
        if sender != self._to or rest[:KEY_BYTES] != _encapsulated(request):
            raise SealError("not_opened", "the reply is another sender's, or to another request")
        return rest[KEY_BYTES:], content_type


def _message(plain: bytes, sender: PrivateKey, to: bytes, info: bytes) -> bytes:
    enc, ciphertext = seal(plain, sender, to, info)
    return b"".join((MAGIC, sender.public, enc, ciphertext))


def _open(message: bytes, key: PrivateKey, info: bytes) -> tuple[bytes, bytes, bytes]:
    """Sender, encapsulated key and plaintext."""
    if not message.startswith(MAGIC):
        raise SealError("not_encrypted", "encrypted messages only are taken here: seal it for the device's public key")
    sender, enc = message[len(MAGIC) : _HEAD - KEY_BYTES], _encapsulated(message)
    try:
        return sender, enc, open_(enc, message[_HEAD:], key, sender, info)
    except OpenError as e:
        raise SealError(
            "not_opened", "the message was sealed for another key, topic or correlation, or has changed on its way"
        ) from e


def _encapsulated(message: bytes) -> bytes:
    return message[_HEAD - KEY_BYTES : _HEAD]


def _info(kind: bytes, topic: str, correlation: bytes | None) -> bytes:
    """What a message is bound to. Lengths keep one field from passing for another."""
    where = topic.encode(errors="surrogatepass")
    bound = b"\0" if correlation is None else b"\1" + correlation
    return b"".join((b"int8d ", kind, b"\0", len(where).to_bytes(4), where, bound))


def _text(content_type: str) -> bytes:
    data = content_type.encode()[:255]
    return bytes((len(data),)) + data


def _split(plain: bytes) -> tuple[str | None, bytes]:
    """The content type, and what follows it."""
    end = 1 + plain[0] if plain else 1
    return plain[1:end].decode(errors="replace") or None, plain[end:]
