"""A connection's socket: non-blocking, with TCP_NODELAY, over TLS where asked for, watched for silence."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections import deque

from agent.mqtt import packets
from agent.mqtt.messages import Settings

_CHUNK = 256 * 1024
_BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Link:
    """Connects. Raises OSError. ``send`` collects, ``flush`` writes; both from any thread. ``wait`` and ``receive`` are
    for the one thread that reads.

    While the reading thread is at work on what it has read, its own sends are held back until ``release``, so that a
    burst of small packets leaves as one.
    """

    def __init__(self, settings: Settings) -> None:
        self._tls: ssl.SSLSocket | None = None
        plain = socket.create_connection((settings.host, settings.port), settings.connect_timeout_s)
        try:
            # Without it, a small message waits for the acknowledgement of the one before: 44 ms instead of 0.35.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket: socket.socket = plain
            if settings.tls is not None:
                from agent.mqtt.tls import context

                self._socket = self._tls = context(settings.tls).wrap_socket(plain, server_hostname=settings.host)
            self._socket.setblocking(False)
        except BaseException:
            plain.close()
            raise
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._out: deque[bytes] = deque()
        self._writing = threading.Lock()  # one writer at a time; over TLS also held while reading
        self._blocked = False  # the socket takes no more now; the reading thread waits for it
        self._reader: int | None = threading.get_ident()  # the reading thread while it is at work
        self._finished = self._woken = False
        self._closed = False
        self.keepalive_s: float = settings.keepalive_s
        self._heard = self._said = self._asked = time.monotonic()

    def send(self, data: bytes) -> None:
        """Collects a packet for the next ``flush``."""
        self._out.append(data)

    def flush(self) -> None:
        """Writes what was collected, as far as the socket takes it; the rest follows by itself. Never blocks, never
        raises.
        """
        if self._reader == threading.get_ident():
            return
        self._write()

    def release(self) -> None:
        """The reading thread has nothing more to say for now."""
        self._write()

    def finish(self) -> None:
        """Writes the rest, and lets the reading thread end."""
        self._finished = True
        self._nudge()

    def receive(self, timeout: float) -> bytes | None:
        """What comes next, b"" at the end of the stream, None after ``timeout`` seconds. Raises OSError."""
        until = time.monotonic() + timeout
        self._write()
        while True:
            data = self._read()
            left = until - time.monotonic()
            if data is not None or left <= 0:
                return data
            self._poll_once(left)

    def wake(self) -> None:
        """Has the reading thread's ``wait``, this one or its next, return None; it need not wake itself."""
        if self._reader != threading.get_ident():
            self._woken = True
            self._nudge()

    def wait(self) -> bytes | None:
        """What comes next; None after ``wake``; b"" once the connection has ended or is finished. Raises OSError, also
        where the broker was silent for too long.
        """
        self._reader = None
        try:
            while True:
                if self._out:  # of a thread that found us at work
                    self._write()
                if self._finished and not self._out:
                    return b""
                if self._woken:
                    self._woken = False
                    return None
                if self._tls is None or not self._tls.pending():  # decrypted already: a poll would not see it
                    self._poll_once(self._silence())
                data = self._read()
                if data is not None:
                    return data
        finally:
            self._reader = threading.get_ident()

    def close(self) -> None:
        """Closes the socket."""
        with self._writing:
            self._closed = True
            self._socket.close()
            self._wake.close()
            self._waker.close()

    def _silence(self) -> float:
        """Seconds until something must be said; says it. Raises OSError where the broker was silent for too long."""
        now = time.monotonic()
        dead = self._heard + 1.5 * self.keepalive_s
        if now >= dead and not self._poll.poll(0):  # after a stop of this process, look first what has come
            raise OSError(f"nothing was heard for {now - self._heard:.0f} s")
        if now >= max(self._asked, min(self._heard, self._said)) + self.keepalive_s / 2:
            self._asked = now
            self._out.append(packets.PING)
            self._write()
        due = max(self._asked, min(self._heard, self._said)) + self.keepalive_s / 2
        return max(0.001, min(due, dead) - now)

    def _poll_once(self, timeout: float) -> None:
        if self._blocked:
            self._poll.modify(self._socket, select.POLLIN | select.POLLOUT)
        for file, event in self._poll.poll(timeout * 1000):
            if file == self._wake.fileno():
                self._wake.recv(4096)
            elif event & select.POLLOUT:
                self._blocked = False
                self._poll.modify(self._socket, select.POLLIN)
                self._write()

    def _read(self) -> bytes | None:
        """None where there is nothing now."""
        try:
            if self._tls is not None:
                with self._writing:
                    data = self._socket.recv(_CHUNK)
            else:
                data = self._socket.recv(_CHUNK)
        except _BLOCKED:
            return None
        self._heard = time.monotonic()
        return data

    def _write(self) -> None:
        # Whoever comes while another writes leaves its packets to that one, which looks again after it has let go.
        while self._out and not self._blocked and self._writing.acquire(blocking=False):
            try:
                if self._closed:
                    return
                data = b"".join([self._out.popleft() for _ in range(len(self._out))])
                try:
                    sent = self._socket.send(data)
                except _BLOCKED:
                    sent = 0
                except OSError:
                    return  # the reading thread finds out by itself
                self._said = time.monotonic()
                if sent < len(data):
                    self._out.appendleft(data[sent:])
                    self._blocked = True
                    self._nudge()
            finally:
                self._writing.release()

    def _nudge(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # awake already, or closed
