"""One connection: reads requests within bounds of size and time, writes responses."""

from __future__ import annotations

import re
import socket
import threading
import time
from dataclasses import dataclass

from agent.http.message import Head, Refused, Response, parse_head, to_bytes

_ADDRESS = re.compile(r"(localhost|[0-9.]+|\[[0-9a-f:.]+\])(:[0-9]+)?", re.IGNORECASE)
_CHUNK = 256 * 1024
_LINGER_S, _LINGER_BYTES = 1.0, 1 << 20


@dataclass(frozen=True)
class Bounds:
    """What a client may ask of a connection. timeout_s: to begin a request; from its first byte to its last; and to
    take the answer.
    """

    header_bytes: int
    body_bytes: int
    timeout_s: float


class Budget:
    """Bytes that all bodies may take together."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Whether there was room."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give(self, count: int) -> None:
        """Returns what was taken."""
        with self._lock:
            self._left += count


class Connection:
    """Bytes of a client, one request after the other. ``idle``: it waits for a request's first byte."""

    def __init__(self, sock: socket.socket, bounds: Bounds, budget: Budget, local: bool) -> None:
        self._sock, self._bounds, self._budget, self._local = sock, bounds, budget, local
        self._buffer = b""
        self._held = 0
        self.idle = True
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self) -> tuple[Head, bytes] | None:
        """The next request; None where the client has left, or sent nothing in time. Raises ``Refused``, ``OSError``.

        The body counts against the budget until ``release``.
        """
        until = time.monotonic() + self._bounds.timeout_s
        self.idle = not self._buffer
        if self.idle:
            try:
                self._buffer = self._receive(until)
            except TimeoutError:
                return None
            if not self._buffer:
                return None
            self.idle = False
            until = time.monotonic() + self._bounds.timeout_s
        try:
            head = self._head(until)
            return head, self._body(head, until)
        except TimeoutError as e:
            raise Refused(408, f"the request was not complete within {self._bounds.timeout_s:g} s") from e

    def release(self) -> None:
        """The body that was read last is no longer needed."""
        self._budget.give(self._held)
        self._held = 0

    def write(self, response: Response, keep_alive: bool, head_only: bool = False) -> None:
        """Raises ``OSError`` where the client does not take it in time."""
        self._sock.settimeout(self._bounds.timeout_s)
        self._sock.sendall(to_bytes(response, keep_alive, head_only))

    def linger(self) -> None:
        """Reads on for a while before the end: closed with bytes unread, the client may lose the answer."""
        until, left = time.monotonic() + _LINGER_S, _LINGER_BYTES
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while left > 0:
                data = self._receive(until)
                if not data:
                    return
                left -= len(data)
        except OSError:
            pass  # it has left, or goes on sending

    def hang_up(self) -> None:
        """Ends the connection, from any thread."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended by itself

    def _receive(self, until: float) -> bytes:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._sock.recv(_CHUNK)

    def _more(self, until: float) -> bytes:
        data = self._receive(until)
        if not data:
            raise ConnectionResetError("the client left in the middle of a request")
        return data

    def _head(self, until: float) -> Head:
        most = self._bounds.header_bytes
        while (end := self._buffer.find(b"\r\n\r\n", 0, most)) < 0:
            if len(self._buffer) >= most:
                raise Refused(431, f"the header has more than {most} bytes (http.max_header_bytes)")
            self._buffer += self._more(until)
        head = parse_head(self._buffer[:end])
        self._buffer = self._buffer[end + 4 :]
        self._check(head)
        return head

    def _check(self, head: Head) -> None:
        if head.length > self._bounds.body_bytes:
            raise Refused(413, f"the body has {head.length} bytes; at most {self._bounds.body_bytes} are taken "
                               "(limits.max_payload_bytes)")  # fmt: skip
        # Web pages are kept out: what a page of some other site asks for names its origin, or, where its name was
        # bent to this address (DNS rebinding), that name.
        if "origin" in head.fields:
            raise Refused(403, "requests from web pages are not taken")
        if self._local and "host" in head.fields and not _ADDRESS.fullmatch(head.fields["host"]):
            raise Refused(421, f"'{head.fields['host'][:100]}' is not an address of this box; ask for 127.0.0.1")

    def _body(self, head: Head, until: float) -> bytes:
        expects = head.fields.get("expect", "").lower()
        if expects not in ("", "100-continue"):
            raise Refused(417, "only 'Expect: 100-continue' is understood")
        if not self._budget.take(head.length):
            raise Refused(503, "too many bytes of requests are under way (limits.max_queued_bytes)")
        self._held = head.length
        if expects and len(self._buffer) < head.length:
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if len(self._buffer) < head.length:
            body = bytearray(self._buffer)  # grows with what comes, whatever was announced
            while len(body) < head.length:
                body += self._more(until)
            self._buffer = bytes(body)
            del body
        body_only, self._buffer = self._buffer[: head.length], self._buffer[head.length :]
        return body_only
