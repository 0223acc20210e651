"""The repository over MQTT alone: files in pieces, asked for through the broker.

    transport = OverMqtt(config.broker, "int8d/repository", "box1", config.updates)
    data = b"".join(transport.read("metadata/timestamp.json"))

A few pieces are under way at once. Each is asked for again until it is there: after a time without an answer, after a
new connection, where it was damaged. Replies are told apart by an id that nobody can guess, so late, doubled and
foreign ones do no harm. Where long pieces are lost and shorter ones are not, it stays with what the broker carries.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import msgspec

from agent.config.tables import Broker, Updates
from agent.mqtt.messages import Incoming, Outgoing
from agent.mqtt.outflow import NO_CONNECTION, NO_READER
from agent.mqtt.session import Session
from agent.repository import pieces
from agent.repository.pace import Pace, Patience
from agent.repository.pieces import LEAST, Reply, Request
from agent.repository.reasons import Refused

WINDOW = 4  # pieces under way, or here and waiting for one before them
_DAMAGED = 4  # times that one piece may come damaged
_FAILED = 4  # times that the server may fail to read it
_SOON_S = 0.25  # before asking again where it is known that nobody heard
_TICK_S = 0.25


class PieceLength:
    """How long pieces are asked for: halved when one is not answered, doubled when one comes. A length that was lost
    twice while shorter ones came, and that never came itself, is not tried again: the broker does not carry it.
    """

    def __init__(self, most: int) -> None:
        self._most = self.now = most
        self._lost: set[int] = set()  # not answered
        self._suspect: set[int] = set()  # and a shorter one was
        self._carried = 0  # the longest that came

    def late(self, length: int) -> None:
        """A piece of that length was not answered."""
        half = max(LEAST, length // 2)
        if length in self._suspect and length > self._carried:
            self._most = min(self._most, half)
        self._lost.add(length)
        self.now = min(self.now, self._most, half)

    def came(self, length: int) -> None:
        """A piece of that length was answered in full."""
        self._carried = max(self._carried, length)
        self._lost.discard(length)
        self._suspect.discard(length)
        self._suspect |= {lost for lost in self._lost if lost > length}
        if length >= self.now:
            self.now = min(self._most, self.now * 2)

    def given(self, length: int) -> None:
        """The server gives so much at a time."""
        self._most = max(LEAST, min(self._most, length))
        self.now = min(self.now, self._most)


@dataclass(eq=False)
class _Piece:
    """Under way. due: when it is asked for (again), ``time.monotonic``."""

    offset: int
    length: int
    longest: int  # that was asked for under this id
    due: float = 0.0
    asked: int = 0
    damaged: int = 0
    failed: int = 0
    unheard: bool = False  # the last time, nobody took it
    id: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class _Event:
    """What the network thread tells: a reply; or why a request has not gone out; or, with no id, a new connection."""

    id: str = ""
    reply: Reply | None = None
    reason: str = ""


class OverMqtt:
    """A ``Transport``. topic: the one that ``int8d-make serve --mqtt`` was given. For one reader at a time.

    It has a connection of its own, under ``broker.client_id`` with ``-updates`` behind it, from the first ``read`` to
    ``close``.
    """

    def __init__(self, broker: Broker, topic: str, device: str, settings: Updates) -> None:
        self.topic, self.settings = topic, settings
        self.where = f"{broker.host}:{broker.port}"
        self._ask_topic = pieces.request_topic(topic, device)
        self.pace = Pace(settings.max_bytes_per_s)
        self.patience = Patience(settings.min_bytes_per_s, settings.stall_s)
        self.length = PieceLength(max(LEAST, self.pace.piece))
        self.events: SimpleQueue[_Event] = SimpleQueue()
        self._lock = threading.Lock()
        self._expected: set[str] = set()  # each id lets one reply in, so that a flood of them takes no memory
        quick = max(broker.reconnect_min_s, min(broker.reconnect_max_s, settings.stall_s / 4))
        self._session = Session(
            msgspec.structs.replace(broker, reconnect_max_s=quick),
            f"{broker.client_id or f'int8d-{device}'}-updates",
            [(pieces.reply_topic(topic, device), 1)],
            self._receive,
            lambda: self.events.put(_Event()),
            clean=True,
            most=pieces.MOST + pieces.OVERHEAD,
            most_held=WINDOW * pieces.MOST,
        )
        self._started = False

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See ``Transport``. Raises ``Refused``, also ``damaged`` and ``mix_and_match`` (the file has changed
        meanwhile).
        """
        if not self._started:
            self._started = True
            self._session.start()
        try:
            yield from _Reading(self, path, offset, length).chunks()
        finally:
            with self._lock:
                self._expected.clear()
            self.events = SimpleQueue()

    def close(self) -> None:
        """See ``Transport``."""
        self._session.stop()

    @property
    def connected(self) -> bool:
        return self._session.connected

    def ask(self, request: Request) -> None:
        """Publishes it, once; ``events`` tells what comes of it."""
        with self._lock:
            self._expected.add(request.id)
        message = Outgoing(self._ask_topic, pieces.encode_request(request))
        events = self.events

        def confirmed(reason: str | None) -> None:
            if reason is not None:
                events.put(_Event(request.id, reason=reason))

        self._session.publish(message, confirmed, once=True)

    def silence(self, heard: bool) -> Refused:
        """What to say where no answer comes. heard: earlier there were some."""
        if not self._session.connected:
            return Refused("unreachable", f"no connection to {self.where} ({self._session.refusal or 'no answer'})")
        return Refused(
            "unreachable",
            f"nobody answers on '{self._ask_topic}'{' any more' if heard else ''}: run int8d-make serve --mqtt --topic "
            f"{self.topic} at this broker, and let its ACL allow it (int8d acl)",
        )

    def _receive(self, message: Incoming) -> None:
        payload = message.payload
        self._session.done(message)
        try:
            reply = pieces.decode_reply(payload)
        except pieces.Malformed:
            return
        with self._lock:
            if reply.header.id not in self._expected:
                return
            self._expected.discard(reply.header.id)
        self.events.put(_Event(reply.header.id, reply))


class _Reading:
    """One call of ``read``."""

    def __init__(self, transport: OverMqtt, path: str, offset: int, length: int | None) -> None:
        self._transport, self._path, self._next = transport, path, offset
        self._frontier = offset  # from here on, nothing is asked for yet
        self._stop = None if length is None else offset + length
        self._size: int | None = None
        self._version = ""
        self._under_way: dict[str, _Piece] = {}
        self._here: dict[int, bytes] = {}  # by offset: what came before its turn
        self._silent_s = 0.0

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in order."""
        if self._stop == self._next:
            return
        while True:
            self._fill()
            self._take_all()  # before it is asked again for what came while our caller was busy
            self._ask_due()
            self._wait()
            while (data := self._here.pop(self._next, None)) is not None:
                self._next += len(data)
                yield data
            if self._size is not None and self._next >= self._end:
                return

    @property
    def _end(self) -> int:
        assert self._size is not None
        return self._size if self._stop is None else min(self._size, self._stop)

    def _fill(self) -> None:
        """Until the first answer the file's length is not known, and one piece is asked for."""
        if self._size is None and self._under_way:
            return
        end = self._stop if self._size is None else self._end
        while len(self._under_way) + len(self._here) < (1 if self._size is None else WINDOW):
            length = self._transport.length.now
            if end is not None:
                length = min(length, end - self._frontier)
                if length <= 0:
                    return
            self._add(self._frontier, length)
            self._frontier += length

    def _add(self, offset: int, length: int) -> None:
        piece = _Piece(offset, length, length)
        self._under_way[piece.id] = piece

    def _ask_due(self) -> None:
        transport = self._transport
        if not transport.connected:
            return
        now = time.monotonic()
        room = WINDOW - sum(piece.asked > 0 for piece in self._under_way.values())
        for piece in sorted(self._under_way.values(), key=lambda p: p.offset):
            if piece.due > now or not (piece.asked or room > 0):
                continue
            room -= not piece.asked
            if piece.asked and not piece.unheard:
                transport.length.late(piece.length)
                self._shorten(piece, transport.length.now)
            piece.asked += 1
            piece.unheard = False
            patience = transport.settings.request_timeout_s * min(1.5 ** (piece.asked - 1), 4.0)
            piece.due = now + patience * random.uniform(1.0, 1.2)  # a fleet shall not ask as one
            transport.ask(Request(piece.id, self._path, piece.offset, piece.length))

    def _shorten(self, piece: _Piece, length: int) -> None:
        """Asks for less under the same id; an answer to what was asked before still counts, as far as it goes."""
        if length < piece.length:
            self._add(piece.offset + length, piece.length - length)
            piece.length = length

    def _wait(self) -> None:
        transport = self._transport
        timeout = _TICK_S
        due = [piece.due for piece in self._under_way.values() if piece.asked]
        if transport.connected and due:
            timeout = min(_TICK_S, max(0.001, min(due) - time.monotonic()))
        began = time.monotonic()
        try:
            event = transport.events.get(timeout=timeout)
        except Empty:
            event = None
        waited = time.monotonic() - began
        came = self._take(event) if event is not None else 0
        self._silent_s = 0.0 if came else self._silent_s + waited
        if self._silent_s >= transport.settings.stall_s:
            raise transport.silence(self._size is not None)
        transport.patience.came(came, waited)
        transport.pace.spend(came)

    def _take_all(self) -> None:
        came = 0
        while not self._transport.events.empty():
            came += self._take(self._transport.events.get())
        if came:
            self._silent_s = 0.0
            self._transport.patience.came(came, 0.0)
            self._transport.pace.spend(came)

    def _take(self, event: _Event) -> int:
        """How many bytes of the file came with it."""
        now = time.monotonic()
        if not event.id:  # answers may have been lost with the old connection
            for piece in self._under_way.values():
                piece.due, piece.unheard = now, True
            return 0
        asked = self._under_way.get(event.id)
        if asked is None:
            return 0
        if event.reply is not None:
            return self._answered(asked, event.reply)
        if event.reason not in (NO_CONNECTION, NO_READER):
            raise Refused("unreachable", f"the broker does not take a request for the repository '"
                          f"{self._transport.topic}' ({event.reason}): its ACL must allow it (int8d acl)")  # fmt: skip
        self._later(asked)
        return 0

    def _later(self, piece: _Piece) -> None:
        """Nobody is at work on it; soon there may be somebody."""
        most = self._transport.settings.request_timeout_s
        piece.due = time.monotonic() + min(_SOON_S * 1.5 ** min(piece.asked, 10), most) * random.uniform(0.8, 1.2)
        piece.unheard = True

    def _answered(self, piece: _Piece, reply: Reply) -> int:
        header, data = reply.header, reply.piece
        if header.error == "not_found":
            raise Refused("not_found", f"the repository '{self._transport.topic}' has no file '{self._path}'")
        if header.error:
            piece.failed += header.error == "failed"
            if piece.failed >= _FAILED:
                raise Refused("unreachable", f"the repository's server can't read '{self._path}'; its log says why")
            self._later(piece)
            return 0
        fits = header.path == self._path and header.offset == piece.offset and len(data) <= piece.longest
        least = min(LEAST, piece.length, max(0, header.size - piece.offset))
        beyond = bool(data) and piece.offset + len(data) > header.size
        if not reply.whole or not fits or len(data) < least or beyond:
            piece.damaged += 1
            if piece.damaged >= _DAMAGED:
                raise Refused("damaged", f"'{self._path}' came damaged {piece.damaged} times in a row, at byte "
                              f"{piece.offset}")  # fmt: skip
            piece.due, piece.unheard = time.monotonic(), True
            return 0
        if self._size is None:
            self._size, self._version = header.size, header.version
        elif (self._size, self._version) != (header.size, header.version):
            raise Refused("mix_and_match", f"'{self._path}' has changed while it was read")
        del self._under_way[piece.id]
        self._keep(piece, data[: piece.length])
        return min(len(data), piece.length)

    def _keep(self, piece: _Piece, data: bytes) -> None:
        assert self._size is not None
        after = piece.offset + len(data)
        left = min(piece.offset + piece.length, self._end) - after
        if left > 0:
            self._transport.length.given(len(data))
            self._add(after, left)
        else:
            self._transport.length.came(len(data))
        if data:
            self._here[piece.offset] = data
