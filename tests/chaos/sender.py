"""Two senders that write each id to disk before they send it, and each reply as it came.

``Once`` publishes each message once, by paho, at QoS 1, and leaves the rest to the broker and the agent. ``Retrying``
is the sender that int8d ships, which sends again until it is answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.client import Client, Refused, Reply
from agent.config import Broker
from tests.chaos.checker import REPLIES, SENT

REPLY_TOPIC = "chaos/replies"
_INFER = "int8d/box1/v2/models/digits/infer"
_IN_FLIGHT, _RETRY_S = 256, 0.5  # of the retrying sender


class Sender:
    """Sends ``pictures`` in turn, ``rate`` a second, until ``finish``."""

    def __init__(self, folder: Path, pictures: Sequence[bytes], rate: float) -> None:
        self._pictures, self._rate = pictures, rate
        self._sent = open(folder / SENT, "wb", buffering=0)  # noqa: SIM115
        self._replies = open(folder / REPLIES, "wb")  # noqa: SIM115
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.sent = 0
        self.answered: set[str] = set()
        self._last_reply = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def __enter__(self) -> Sender:
        self._open()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)
        self._close()
        self._sent.close()
        self._replies.close()

    def finish(self, patience_s: float) -> None:
        """Sends nothing new, and waits until all is answered, or nothing came for ``patience_s`` seconds."""
        self._stop.set()
        self._thread.join(10)
        self._last_reply = time.monotonic()
        while len(self.answered) < self.sent and time.monotonic() - self._last_reply < patience_s:
            time.sleep(0.05)
        time.sleep(0.5)  # for what comes twice

    def _run(self) -> None:
        for name, picture in self._names():
            self._send(name, picture)

    def _names(self) -> Iterator[tuple[str, bytes]]:
        """Ids with their pictures, each on disk when it is handed out, at the rate; what fell behind is caught up."""
        start = time.monotonic()
        while not self._stop.is_set():
            due = start + self.sent / self._rate
            if (wait := due - time.monotonic()) > 0:
                self._stop.wait(wait)
                continue
            name, index = f"m{self.sent}", self.sent % len(self._pictures)
            self._sent.write(b"%s %d %d\n" % (name.encode(), index, time.monotonic_ns()))
            self.sent += 1
            yield name, self._pictures[index]

    def _received(self, name: str, payload: bytes) -> None:
        with self._lock:
            if not self._replies.closed:
                self._replies.write(b"%d %s %s\n" % (time.monotonic_ns(), name.encode(), payload.replace(b"\n", b" ")))
            self.answered.add(name)
            self._last_reply = time.monotonic()

    def _open(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _send(self, name: str, picture: bytes) -> None:
        raise NotImplementedError


class Once(Sender):
    """Of another make than the agent, so that a fault of the agent's own MQTT does not hide itself. Over MQTT 5 to a
    route, with Correlation Data; over 3.1.1 to the device's own topics, which have the id in them.
    """

    def __init__(self, folder: Path, pictures: Sequence[bytes], rate: float, port: int, v5: bool) -> None:
        super().__init__(folder, pictures, rate)
        self._port, self._v5 = port, v5
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            "chaos-sender",
            clean_session=None if v5 else False,
            protocol=MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311,
        )

    def _open(self) -> None:
        client, subscribed = self._client, threading.Event()
        client.max_inflight_messages_set(65535)
        client.max_queued_messages_set(0)
        client.on_connect = lambda c, *a: c.subscribe(REPLY_TOPIC if self._v5 else f"{_INFER}/response/+", 1)
        client.on_subscribe = lambda *a: subscribed.set()
        client.on_message = self._on_message
        if self._v5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 3600
            client.connect("127.0.0.1", self._port, clean_start=False, properties=properties)
        else:
            client.connect("127.0.0.1", self._port)
        client.loop_start()
        assert subscribed.wait(10), "the sender's subscription is not confirmed"

    def _close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _send(self, name: str, picture: bytes) -> None:
        if self._v5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ResponseTopic, properties.CorrelationData = REPLY_TOPIC, name.encode()
            self._client.publish("cameras/1/frame", picture, 1, properties=properties)
        else:
            self._client.publish(f"{_INFER}/request/{name}", picture, 1)

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        if self._v5:
            name = getattr(message.properties, "CorrelationData", b"none").decode()
        else:
            name = message.topic.rsplit("/", 1)[1]
        self._received(name, message.payload)


class Retrying(Sender):
    """``agent.client``, many messages at a time. Answers that come twice are not seen: it takes the first."""

    def __init__(self, folder: Path, pictures: Sequence[bytes], rate: float, port: int, device: str) -> None:
        super().__init__(folder, pictures, rate)
        settings = Broker(port=port, reconnect_min_s=0.05, reconnect_max_s=0.2)
        self._client = Client(settings, device, max_in_flight=_IN_FLIGHT)

    def _open(self) -> None:
        self._client.start()
        self._client.wait_connected(10)

    def _close(self) -> None:
        self._client.stop()

    def _send(self, name: str, picture: bytes) -> None:
        future = self._client.submit("digits", picture, None, None, _RETRY_S, name)
        future.add_done_callback(lambda future: self._done(name, future))

    def _done(self, name: str, future: Future[Reply]) -> None:
        error = future.exception()
        if error is None:
            self._received(name, future.result().payload)
        elif isinstance(error, Refused):
            self._received(name, error.reply)
