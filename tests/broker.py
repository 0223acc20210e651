"""A real mosquitto on a free loopback port, to be killed and started again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from agent.mqtt.embedded import free_port

MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"


def wait_listening(port: int, process: subprocess.Popen[bytes], why: Callable[[], str]) -> None:
    """Until a server that has just been started takes connections. why: what to say where it has ended."""
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            assert process.poll() is None, why()
            assert time.monotonic() < until, "it does not listen"
            time.sleep(0.02)


class Mosquitto:
    """``extra``: lines of mosquitto.conf. State lies in ``folder``, and outlives a kill as far as it is kept.

    config: all of mosquitto.conf instead, with ``{port}``.
    """

    def __init__(self, folder: Path, extra: str = "", anonymous: bool = True, config: str = "") -> None:
        self.port = free_port()
        self._folder = folder
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            config.replace("{port}", str(self.port))
            or f"listener {self.port} 127.0.0.1\nallow_anonymous {str(anonymous).lower()}\nset_tcp_nodelay true\n"
            f"user root\npersistence true\npersistence_location {folder}/\nautosave_interval 1\n"
            f"autosave_on_changes true\nmax_queued_messages 0\n{extra}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)  # fmt: skip
        wait_listening(self.port, self._process, lambda: "mosquitto ended; see its configuration")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None
