"""A proxy that loses publications both ways, as a broker that confirms and then forgets, and that hangs up at times."""

from __future__ import annotations

import random
import socket
import threading

from agent.mqtt import packets
from agent.mqtt.packets import Reader


class LossyProxy:
    """Of the publications of each direction, the share ``loss`` is confirmed to whoever sent it and goes nowhere; with
    each, the share ``hang_up`` of the connections ends. MQTT 5 only. Listens on ``port``.
    """

    def __init__(self, target: int, loss: float, hang_up: float, seed: int = 1) -> None:
        self._target, self._loss, self._hang_up = target, loss, hang_up
        self._random = random.Random(seed)
        self.lost = {"up": 0, "down": 0}
        self.ended = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sender, _ = self._listener.accept()
            except OSError:
                return
            broker = socket.create_connection(("127.0.0.1", self._target))
            for end in (sender, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lock = threading.Lock()  # a synthesized confirmation must not land within a packet
            for way, source, sink in (("up", sender, broker), ("down", broker, sender)):
                threading.Thread(target=self._carry, args=(way, source, sink, lock), daemon=True).start()

    def _carry(self, way: str, source: socket.socket, sink: socket.socket, lock: threading.Lock) -> None:
        reader = Reader()
        try:
            while data := source.recv(65536):
                for first, body, _ in reader.feed(data):
                    self._pass(way, first, body, source, sink, lock)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # ended already

    def _pass(self, way: str, first: int, body: bytes, source: socket.socket, sink: socket.socket,
              lock: threading.Lock) -> None:  # fmt: skip
        if first >> 4 == packets.PUBLISH and first & 6:
            if self._random.random() < self._hang_up:
                self.ended += 1
                raise OSError("hung up")
            if self._random.random() < self._loss:
                self.lost[way] += 1
                topic = int.from_bytes(body[:2], "big")
                with lock:
                    source.sendall(packets.puback(int.from_bytes(body[2 + topic : 4 + topic], "big")))
                return
        length, left = b"", len(body)
        while True:
            left, byte = left >> 7, left & 127
            length += bytes([byte | (128 if left else 0)])
            if not left:
                break
        with lock:
            sink.sendall(bytes([first]) + length + body)
