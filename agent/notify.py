"""systemd's notification protocol, sd_notify(3): datagrams to the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Does nothing where no service manager listens."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        address = env.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog = env.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(watchdog) / 1e6 if watchdog.isdecimal() else None

    def send(self, state: str) -> None:
        """For example ``READY=1``, ``WATCHDOG=1``, ``STOPPING=1``, ``STATUS=…``."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(state.encode(), self._address)
            except OSError:
                pass  # the manager is gone; there is nobody to tell
