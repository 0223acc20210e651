"""``int8d-make serve --mqtt`` as a process, and a server beside it that lies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.config.tables import Broker, Updates
from agent.repository import pieces
from agent.repository.over_mqtt import OverMqtt
from agent.repository.pieces import Request
from tests.agent_process import ROOT, Peer

TOPIC = "int8d/repository"


class Served:
    """The process; its log lies beside the repository."""

    def __init__(self, repository: Path, port: int, *options: object) -> None:
        self._log = repository.parent / "serve.log"
        self._command = [sys.executable, "-m", "models.cli", "serve", "--mqtt", "--repo", str(repository), "--port",
                         str(port), *map(str, options)]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=ROOT)
        until = time.monotonic() + 20
        while "serving on" not in self.log():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        status = self._process.wait(15)
        self._process = None
        return status


class Liar:
    """Answers device ``box1`` with what ``reply(request)`` yields, and keeps the requests."""

    def __init__(self, port: int, reply: Callable[[Request], Iterator[bytes]]) -> None:
        self.requests: list[Request] = []
        self._peer = Peer(port, [pieces.request_topic(TOPIC, "+")])

        def answer(client, userdata, message) -> None:
            request = pieces.decode_request(message.payload)
            self.requests.append(request)
            for payload in reply(request):
                client.publish(pieces.reply_topic(TOPIC, "box1"), payload, 1)

        self._peer.client.on_message = answer

    def close(self) -> None:
        self._peer.close()


def over_mqtt(port: int, device: str = "box1", protocol: str = "5", broker: Broker | None = None,
              **settings: object) -> OverMqtt:  # fmt: skip
    """A device's transport, which does not wait long."""
    broker = broker or Broker(port=port, protocol=protocol, reconnect_min_s=0.05, reconnect_max_s=0.2)  # type: ignore[arg-type]
    known = {"request_timeout_s": 0.5, "stall_s": 10.0, "min_bytes_per_s": 0} | settings
    return OverMqtt(broker, TOPIC, device, Updates(**known))  # type: ignore[arg-type]
