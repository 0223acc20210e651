"""A repository over MQTT, for devices that reach nothing but the broker: the other end of ``repository.over_mqtt``.

One request of each device in turn, however many one sends; not faster than allowed, all devices together; bounded in
memory. An answer that the broker does not take is not kept: the device asks again.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable

from agent.logs import Sparing
from agent.mqtt import packets
from agent.mqtt.messages import Incoming, Outgoing, Settings
from agent.mqtt.outflow import NO_CONNECTION, NO_READER
from agent.mqtt.session import Session
from agent.repository import pieces
from agent.repository.pace import Pace
from agent.repository.pieces import LEAST, MOST, Request
from models.repository.folder import Folder

log = logging.getLogger(__name__)
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOO_LARGE = packets.reason_name(packets.TOO_LARGE)
_PER_DEVICE = 16  # requests that wait
_DEVICES = 4096
_STALE_S = 60.0  # nobody waits for the answer to an older request
_UNCONFIRMED = 16  # answers under way to the broker
_TICK_S = 0.25
_TELL_S = 60.0


class Fair:
    """Requests that wait: first the device whose turn was the longest ago, then its oldest. A request that is repeated
    (the same id) takes the place of the one before. Any thread may put. clock: seconds.
    """

    def __init__(self, per_device: int = _PER_DEVICE, devices: int = _DEVICES,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self._per_device, self._most, self._clock = per_device, devices, clock
        self._devices: OrderedDict[str, OrderedDict[str, tuple[Request, float]]] = OrderedDict()
        self._some = threading.Condition()

    def put(self, device: str, request: Request) -> bool:
        """False where too many wait already; it is dropped."""
        with self._some:
            waiting = self._devices.get(device)
            if waiting is None:
                if len(self._devices) >= self._most:
                    return False
                waiting = self._devices[device] = OrderedDict()
            if request.id not in waiting and len(waiting) >= self._per_device:
                return False
            waiting[request.id] = (request, self._clock())
            self._some.notify()
        return True

    def take(self, timeout: float) -> tuple[str, Request] | None:
        """The next one; None where none comes in time."""
        with self._some:
            if not self._devices:
                self._some.wait(timeout)
            while self._devices:
                device, waiting = self._devices.popitem(last=False)
                _, (request, came) = waiting.popitem(last=False)
                if waiting:
                    self._devices[device] = waiting
                if self._clock() - came < _STALE_S:
                    return device, request
        return None


class Server:
    """Answers from ``run`` until its ``stop`` is set. max_piece: bytes of an answer; max_bytes_per_s: of all, 0: no
    limit.
    """

    def __init__(
        self, folder: Folder, broker: Settings, topic: str, max_piece: int = MOST, max_bytes_per_s: int = 0
    ) -> None:
        self._folder, self._topic, self._max_piece, self._rate = folder, topic, max_piece, max_bytes_per_s
        self._waiting = Fair()
        self._room = threading.Semaphore(_UNCONFIRMED)
        self._sparing = Sparing(_TELL_S)
        self._session = Session(
            broker,
            f"int8d-serve-{uuid.uuid4().hex[:12]}",
            [(pieces.request_topic(topic, "+"), 1)],
            self._receive,
            self._connected,
            clean=True,
            most=pieces.HEADER_BYTES + pieces.OVERHEAD,
            most_held=1 << 20,
        )

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        pace = Pace(self._rate, sleep=stop.wait)
        self._session.start()
        try:
            while not stop.is_set():
                if not self._session.connected:
                    stop.wait(_TICK_S)
                elif self._room.acquire(timeout=_TICK_S):
                    turn = self._waiting.take(_TICK_S)
                    if turn is None:
                        self._room.release()
                    else:
                        pace.spend(self._answer(*turn))
        finally:
            self._session.stop()

    def _answer(self, device: str, request: Request) -> int:
        """How many bytes it took."""
        length = min(request.length, self._max_piece, max(LEAST, self._session.largest - pieces.OVERHEAD))
        try:
            payload = pieces.answer(request, *self._folder.read(request.path, request.offset, length))
        except FileNotFoundError:
            self._tell("absent", "'%s' asks for '%s', which is not served", device, request.path)
            payload = pieces.refusal(request, "not_found")
        except OSError as e:
            log.error("'%s' can't be read: %s", request.path, e)
            payload = pieces.refusal(request, "failed")

        def confirmed(reason: str | None) -> None:
            self._room.release()
            if reason == _TOO_LARGE and length > LEAST:
                self._max_piece = max(LEAST, length // 2)
                log.warning("the broker takes no messages of %d bytes; pieces of %d from now on", len(payload),
                            self._max_piece)  # fmt: skip
                self._waiting.put(device, request)
            elif reason not in (None, NO_CONNECTION, NO_READER):
                self._tell("refused", "the broker refuses an answer to '%s': %s", device, str(reason))

        self._session.publish(Outgoing(pieces.reply_topic(self._topic, device), payload), confirmed, once=True)
        self._tell("served", "answered '%s': '%s'", device, request.path, level=logging.INFO)
        return len(payload)

    def _receive(self, message: Incoming) -> None:
        topic, payload = message.topic, message.payload
        self._session.done(message)
        device = topic.rpartition("/")[2]
        try:
            if not _DEVICE.fullmatch(device):
                raise pieces.Malformed("not the name of a device")
            request = pieces.decode_request(payload)
        except pieces.Malformed as e:
            self._tell("malformed", "what came on '%s' is no request: %s", topic, str(e))
            return
        if not self._waiting.put(device, request):
            self._tell("full", "too many requests wait; one of '%s' for '%s' is dropped", device, request.path)

    def _connected(self) -> None:
        log.info("connected over MQTT %s, serving on '%s'", self._session.version, self._topic)

    def _tell(self, kind: str, text: str, *about: str, level: int = logging.WARNING) -> None:
        count = self._sparing.due(kind)
        if count:
            log.log(level, text + (f" (and {count - 1} more)" if count > 1 else ""), *about)
