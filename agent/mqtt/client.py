"""The sending side: publish an input, wait for its reply, and try again until it is answered.

    with Client(Broker(host="127.0.0.1"), device="box1") as client:
        reply = client.infer("digits", open("7.png", "rb").read(), content_type="image/png")

A broker that dies can lose what it had acknowledged, so only a sender that retries until it is answered loses nothing.
Retries carry the same correlation; the agent answers a repetition from its cache.
"""

from __future__ import annotations

import threading
import time
import uuid
from types import TracebackType

from agent.errors import Int8dError
from agent.mqtt.messages import Incoming, Outgoing, Settings
from agent.mqtt.session import Session


class NoAnswer(Int8dError):
    """No reply came in time."""


class _Call:
    def __init__(self, sent_ns: int) -> None:
        self.event = threading.Event()
        self.sent_ns = sent_ns
        self.reply = b""
        self.round_trip_ns = 0


class Client:
    """One connection of a sender. Safe to use from several threads."""

    def __init__(self, broker: Settings, device: str, prefix: str = "int8d", client_id: str = "") -> None:
        self._base = f"{prefix}/{device}"
        self._id = client_id or f"int8d-send-{uuid.uuid4().hex[:12]}"
        self._calls: dict[str, _Call] = {}
        self._replies = f"{self._base}/clients/{self._id}"
        # Under 3.1.1 the reply's topic ends in the request's id; see docs/protocol.md.
        subscriptions = [(f"{self._replies}/reply", 1), (f"{self._base}/v2/models/+/infer/response/+", 1)]
        self._session = Session(broker, self._id, subscriptions, self._receive, clean=True)

    def __enter__(self) -> Client:
        self._session.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.stop()

    def wait_connected(self, timeout: float) -> None:
        """Raises ``NoAnswer`` where no connection comes about in ``timeout`` seconds."""
        if not self._session.wait_ready(timeout):
            raise NoAnswer(f"no connection to the broker within {timeout:g} s ({self._session.refusal or 'no answer'})")

    @property
    def protocol(self) -> str:
        """The MQTT version in use: ``5`` or ``3.1.1``."""
        return self._session.version

    def infer(
        self,
        model: str,
        payload: bytes,
        content_type: str | None = None,
        timeout: float = 30.0,
        retry: float = 2.0,
        request_id: str | None = None,
    ) -> tuple[bytes, int]:
        """The reply, and nanoseconds from the first sending to it. Sends again every ``retry`` seconds.

        Raises ``NoAnswer`` after ``timeout`` seconds.
        """
        name = request_id or uuid.uuid4().hex
        call = self._calls[name] = _Call(time.monotonic_ns())
        until = time.monotonic() + timeout
        try:
            self.wait_connected(timeout)
            while True:
                self._send(name, model, payload, content_type)
                if call.event.wait(max(0.0, min(retry, until - time.monotonic()))):
                    return call.reply, call.round_trip_ns
                if time.monotonic() >= until:
                    raise NoAnswer(
                        f"no reply from {self._base} within {timeout:g} s; does it run, and serve '{model}'?"
                    )
        finally:
            del self._calls[name]

    def _send(self, name: str, model: str, payload: bytes, content_type: str | None) -> None:
        topic = f"{self._base}/v2/models/{model}/infer"
        if self._session.version == "5":
            stamp = (("source_timestamp_us", str(time.time_ns() // 1000)),)
            self._session.publish(
                Outgoing(topic, payload, 1, False, name.encode(), f"{self._replies}/reply", content_type, stamp)
            )
        else:
            self._session.publish(Outgoing(f"{topic}/request/{name}", payload, 1))

    def _receive(self, message: Incoming) -> None:
        name = message.correlation.decode(errors="replace") if message.correlation else message.topic.rsplit("/", 1)[1]
        call = self._calls.get(name)
        if call is not None and not call.event.is_set():
            call.reply = message.payload
            call.round_trip_ns = time.monotonic_ns() - call.sent_ns
            call.event.set()
        self._session.done(message)
