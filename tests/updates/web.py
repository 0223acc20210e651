"""A web server of a folder that does as the test says; nginx is in tests/nginx.py."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Hostile = Callable[["Handler", bytes], None]  # answers instead, with the bytes that were right


class Web:
    """folder: what is served; ``hostile``: by the end of a path, who answers instead. ranges: whether it knows them.

    served: path, where it began, and the bytes that were sent, of each answer.
    """

    def __init__(self, folder: Path, context: ssl.SSLContext | None = None) -> None:
        self.folder, self.ranges = folder, True
        self.hostile: dict[str, Hostile] = {}
        self.served: list[tuple[str, int, int]] = []
        self.stopping = threading.Event()
        handler = type("Bound", (Handler,), {"web": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def sent(self, end: str) -> int:
        """Bytes of bodies, of paths that end so."""
        return sum(count for path, _, count in self.served if path.endswith(end))


class Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        file = self.web.folder / self.path.lstrip("/")
        data = file.read_bytes() if file.is_file() else b""
        for end, hostile in self.web.hostile.items():
            if self.path.endswith(end):
                with suppress(OSError):
                    hostile(self, data)
                self.close_connection = True
                return
        if not file.is_file():
            self.head(404, 0)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not self.web.ranges:
            self.head(200, len(data))
            self.body(data, 0)
            return
        start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        if start >= len(data):
            self.head(416, 0)
            return
        part = data[start : end + 1]
        self.head(206, len(part), {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})
        self.body(part, start)

    def head(self, status: int, length: int | None, more: dict[str, str] | None = None) -> None:
        """length: None ends with the connection."""
        self.send_response(status)
        more = {"Content-Type": "application/octet-stream"} | (more or {})
        more |= {"Connection": "close"} if length is None else {"Content-Length": str(length)}
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, data: bytes, start: int, piece: int = 1 << 16, pause_s: float = 0.0) -> None:
        sent = 0
        try:
            for at in range(0, len(data), piece):
                if self.web.stopping.is_set():
                    return
                self.wfile.write(data[at : at + piece])
                sent += len(data[at : at + piece])
                time.sleep(pause_s)
        finally:
            self.web.served.append((self.path, start, sent))

    def log_message(self, *_: object) -> None:
        pass


def endless(handler: Handler, data: bytes) -> None:
    """The file, and then more without an end."""
    handler.head(200, None)
    handler.body(data, 0)
    while not handler.web.stopping.is_set():
        handler.body(bytes(1 << 16), len(data))


def drip(handler: Handler, data: bytes) -> None:
    """Fifty bytes a second."""
    handler.head(200, len(data))
    handler.body(data, 0, piece=1, pause_s=0.02)


def drip_header(handler: Handler, data: bytes) -> None:
    """An answer whose first line does not end."""
    handler.wfile.write(b"HTTP/1.1 200 ")
    handler.body(b"O" * 100_000, 0, piece=1, pause_s=0.05)


def drip_chunk(handler: Handler, data: bytes) -> None:
    """A chunk whose length does not end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    handler.body(b"0" * 100_000, 0, piece=1, pause_s=0.05)


def stalls(handler: Handler, data: bytes) -> None:
    """Half of it, and then nothing."""
    handler.head(200, len(data))
    handler.body(data[: len(data) // 2], 0)
    handler.web.stopping.wait(20)


def cut(handler: Handler, data: bytes) -> None:
    """Ends in the middle of what it announced, each time anew."""
    handler.head(200, len(data))
    handler.body(data[: len(data) // 2], 0)


def cut_unannounced(handler: Handler, data: bytes) -> None:
    """Ends in the middle; no length was announced."""
    handler.head(200, None)
    handler.body(data[: len(data) // 2], 0)


def portal(handler: Handler, data: bytes) -> None:
    page = b"<!DOCTYPE html><title>Welcome to our network</title>"
    handler.head(200, len(page), {"Content-Type": "text/html; charset=utf-8"})
    handler.body(page, 0)


def disguised_portal(handler: Handler, data: bytes) -> None:
    """Says that its page is a file."""
    page = b"<!DOCTYPE html><title>Welcome to our network</title>"
    handler.head(200, len(page))
    handler.body(page, 0)


def redirect(handler: Handler, data: bytes) -> None:
    handler.head(302, 0, {"Location": "http://login.example/"})


def other_bytes(handler: Handler, data: bytes) -> None:
    handler.head(200, len(data))
    handler.body(bytes(len(data)), 0)


def other_part(handler: Handler, data: bytes) -> None:
    """Asked for the rest, gives the beginning as a part."""
    half = len(data) // 2
    handler.head(206, half, {"Content-Range": f"bytes 0-{half - 1}/{len(data)}"})
    handler.body(data[:half], 0)
