"""A broker for the demo: amqtt, in a process of its own, on a free loopback port.

It speaks MQTT 3.1.1 only and keeps nothing: for trying out, not for use. Run as ``python -m agent.mqtt.embedded PORT``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import socket
import subprocess
import sys
import time

from agent.errors import Int8dError


class EmbeddedBroker:
    """Starts the broker and waits until it listens. Raises ``Int8dError`` where amqtt is missing or does not start."""

    def __init__(self, timeout: float = 20.0) -> None:
        if importlib.util.find_spec("amqtt") is None:
            raise Int8dError("the demo's broker needs amqtt: pip install 'int8d[demo]'")
        self.port = free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent.mqtt.embedded", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        until = time.monotonic() + timeout
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                assert self._process.stderr is not None
                raise Int8dError(f"the embedded broker did not start: {self._process.stderr.read().decode()[-500:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


async def _serve(port: int) -> None:
    from amqtt.broker import Broker

    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })  # fmt: skip
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    try:
        asyncio.run(_serve(int(sys.argv[1])))
    except KeyboardInterrupt:
        pass
