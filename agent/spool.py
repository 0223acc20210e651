"""A sender's unanswered messages on disk: ``agent.client`` puts them here before it sends them, and takes them out when
they are answered.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from hashlib import blake2b

import msgspec

from agent.errors import Int8dError
from agent.journal import Journal

log = logging.getLogger(__name__)


class SpoolFull(Int8dError):
    """The message can't be stored: the spool's bound is reached, or the disk does not take it. It is not sent."""


class Message(msgspec.Struct):
    """number: what ``remove`` takes."""

    number: int
    name: str
    model: str
    payload: bytes
    content_type: str | None


class _Head(msgspec.Struct, array_like=True):
    name: str
    model: str
    content_type: str | None


class Spool:
    """At most ``most`` bytes in the file ``path``, of one process at a time. Raises ``Int8dError`` where it can't be
    opened, for example because another process has it.
    """

    def __init__(self, path: str | os.PathLike[str], most: int) -> None:
        self._journal = Journal(path, most)
        # The same for every process that uses this file: a reply's topic is part of what makes a repetition one.
        self.owner = blake2b(f"{socket.gethostname()}:{os.path.abspath(path)}".encode(), digest_size=6).hexdigest()
        if self._journal.failure is not None:
            why = self._journal.failure
            self._journal.close()
            raise Int8dError(f"{os.fspath(path)}: can't be used as a spool ({why}); is another process using it?")

    def store(self, name: str, model: str, payload: bytes, content_type: str | None) -> int:
        """The message's number, once it is on disk. Raises ``SpoolFull``."""
        outcome: list[int | None] = []
        done = threading.Event()

        def stored(number: int | None) -> None:
            outcome.append(number)
            done.set()

        self._journal.put(msgspec.msgpack.encode(_Head(name, model, content_type)), payload, stored)
        done.wait()
        if outcome[0] is None:
            why = self._journal.failure or "spool_bytes is reached"
            raise SpoolFull(f"the message can't be stored ({why}), and is not sent")
        return outcome[0]

    def messages(self) -> Iterator[Message]:
        """What is stored now, in order; read as it is asked for."""
        after, last = 0, self._journal.last
        while records := self._journal.read(after):
            for record in records:
                after = record.seq
                if after > last:
                    return
                try:
                    head = msgspec.msgpack.decode(record.head, type=_Head)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    log.error("record %d of the spool is no message", after)
                    continue
                yield Message(after, head.name, head.model, record.body, head.content_type)

    def remove(self, number: int) -> None:
        """Forgets a message, soon."""
        self._journal.remove(number)

    def close(self) -> None:
        """Closes the file; what was not removed is there the next time."""
        self._journal.close()
