"""A broker that does what a test tells it, packet by packet, for what a real one does not do when asked."""

from __future__ import annotations

import socket
import time

from agent.config import Broker
from agent.mqtt import packets
from agent.mqtt.packets import Reader

CONNACK, RESUMED = b"\x20\x03\x00\x00\x00", b"\x20\x03\x01\x00\x00"


class ScriptedBroker:
    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.socket: socket.socket | None = None
        self._packets: list[tuple[int, bytes]] = []

    def settings(self, **kwargs) -> Broker:
        port = self.listener.getsockname()[1]
        return Broker(**{"port": port, "reconnect_min_s": 0.01, "reconnect_max_s": 0.05, "protocol": "5"} | kwargs)

    def accept(self, connack: bytes | None = CONNACK, subscribed: bool = True) -> bytes:
        """Takes a connection, up to its subscription; the CONNECT packet's body."""
        self.socket, _ = self.listener.accept()
        self.socket.settimeout(10)
        self._reader, self._packets = Reader(), []
        kind, connect = self.receive()
        assert kind >> 4 == packets.CONNECT
        if connack is not None:
            self.socket.sendall(connack)
            if subscribed:
                kind, body = self.receive()
                assert kind >> 4 == packets.SUBSCRIBE
                self.socket.sendall(b"\x90\x04" + body[:2] + b"\x00\x01")
        return connect

    def receive(self, timeout: float = 10) -> tuple[int, bytes]:
        """The next packet: its first byte and its body; b"" at the end of the connection."""
        self.socket.settimeout(timeout)
        while not self._packets:
            data = self.socket.recv(65_536)
            if not data:
                return 0, b""
            self._packets += [(first, body) for first, body, _ in self._reader.feed(data)]
        return self._packets.pop(0)

    def published(self) -> tuple[str, bytes, int, bool]:
        """The next PUBLISH: topic, payload, id, and whether it is marked as repeated."""
        first, body = self.receive()
        assert first >> 4 == packets.PUBLISH, (first, body)
        message = packets.parse_publish(first, body, 0, True)
        return message.topic, message.payload, message.mid, message.duplicate

    def silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for a while."""
        try:
            return self.receive(seconds) == ()
        except TimeoutError:
            return True

    def confirm(self, mid: int, reason: int = 0) -> None:
        self.socket.sendall(b"\x40\x03" + mid.to_bytes(2) + bytes([reason]))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hang_up(self) -> None:
        self.socket.close()

    def close(self) -> None:
        self.listener.close()
        if self.socket is not None:
            self.socket.close()


def eventually(holds, timeout: float = 10) -> bool:
    """Whether it comes to hold."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.005)
    return False
