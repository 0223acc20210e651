"""Listens, and serves each connection on a thread of its own, so many at most.

Not ``http.server``: that one takes 6 MB of header a connection, waits anew for every byte, and reads what it is sent
with the parser of e-mails. Here every request has bounds of size and time, and a connection too many is told so.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

import msgspec

from agent.http.connection import Bounds, Budget, Connection
from agent.http.message import Head, Refused, Response, to_bytes

log = logging.getLogger(__name__)
_BACKLOG = 64
_RETRY_S = 2


class Settings(Protocol):
    """What is read of ``agent.config.Http``."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def max_connections(self) -> int: ...
    @property
    def max_header_bytes(self) -> int: ...
    @property
    def timeout_s(self) -> float: ...


class Server:
    """Answers with ``handle(head, body)``, which is called on the connection's thread.

    body_bytes: of one request; all_bytes: of all requests under way.
    """

    def __init__(
        self, settings: Settings, handle: Callable[[Head, bytes], Response], body_bytes: int, all_bytes: int
    ) -> None:
        self._settings, self._handle = settings, handle
        self._bounds = Bounds(settings.max_header_bytes, body_bytes, settings.timeout_s)
        self._budget = Budget(max(all_bytes, body_bytes))
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begins to take connections. An address that is not free is tried again and again: it must not keep the rest
        of the agent from its work.
        """
        self._listen()
        self._thread.start()

    def _listen(self) -> None:
        settings = self._settings
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        try:
            listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
        except OSError as e:
            log.error("http: can't listen on %s:%d (%s), trying again in %d s", settings.host, settings.port,
                      e.strerror or e, _RETRY_S)  # fmt: skip
            return
        address, port = listener.getsockname()[:2]
        self._local = address == "::1" or address.startswith("127.")
        if not self._local:
            log.warning("http: %s is no loopback address: whoever reaches it may use every model, with no password "
                        "and in the clear", address)  # fmt: skip
        log.info("http on %s:%d", address, port)
        self._listener = listener

    def stop(self, timeout: float) -> None:
        """Takes no more; gives the requests under way ``timeout`` seconds to be answered."""
        self._stopping.set()
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
        until = time.monotonic() + timeout
        while connections := self._all():
            late = time.monotonic() > until
            for connection in connections:
                if connection.idle or late:
                    connection.hang_up()
            if time.monotonic() > until + 1:
                return
            time.sleep(0.01)

    def _all(self) -> list[Connection]:
        with self._lock:
            return list(self._connections)

    def _run(self) -> None:
        while self._listener is None:
            if self._stopping.wait(_RETRY_S):
                return
            self._listen()
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as e:
                if self._stopping.is_set():
                    return
                log.warning("http: no connection can be taken: %s", e)  # for example no more files
                self._stopping.wait(0.1)
                continue
            try:
                self._take(sock)
            except OSError:
                sock.close()  # the client has left
            except RuntimeError as e:
                log.warning("http: no thread for a connection: %s", e)
                sock.close()

    def _take(self, sock: socket.socket) -> None:
        connection = Connection(sock, self._bounds, self._budget, self._local)
        with self._lock:
            room = len(self._connections) < self._settings.max_connections
            if room:
                self._connections.add(connection)
        if not room:
            why = f"{self._settings.max_connections} connections are open (http.max_connections)"
            with closing(sock):
                sock.setblocking(False)
                sock.send(to_bytes(failure(503, why), keep_alive=False))
                sock.shutdown(socket.SHUT_WR)
            return
        try:
            threading.Thread(target=self._serve, args=(sock, connection), name="http-client", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._connections.discard(connection)
            raise

    def _serve(self, sock: socket.socket, connection: Connection) -> None:
        try:
            while self._exchange(connection) and not self._stopping.is_set():
                pass
        except OSError:
            pass  # the client has left
        except Exception:
            log.exception("http: a connection failed")
        finally:
            connection.release()
            with self._lock:
                self._connections.discard(connection)
            sock.close()

    def _exchange(self, connection: Connection) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            found = connection.read()
        except Refused as e:
            connection.write(failure(e.status, str(e)), keep_alive=False)
            connection.linger()
            return False
        if found is None:
            return False
        head, body = found
        try:
            response = self._handle(head, body)
        except Exception as e:  # a bug must cost the one request that found it
            log.exception("http: %s %s failed", head.method, head.path)
            response = failure(500, f"{type(e).__name__}: {e}")
        del found, body
        keep_alive = head.keep_alive and not self._stopping.is_set()
        sent = False
        try:
            connection.write(response, keep_alive, head.method == "HEAD")
            sent = True
        finally:
            connection.release()
            response.sent(sent)
        if not keep_alive:
            connection.linger()
        return keep_alive


def failure(
    status: int, message: str, code: str | None = None, request_id: str | None = None, **fields: str
) -> Response:
    """An error as the Open Inference Protocol has it, with the code that MQTT's replies carry."""
    body = {"error": message, "code": code or _CODES.get(status, "invalid_input")}
    if request_id is not None:
        body["id"] = request_id
    return Response(status, msgspec.json.encode(body), fields={k.replace("_", "-"): v for k, v in fields.items()})


_CODES = {404: "not_found", 405: "not_allowed", 500: "internal", 503: "overloaded"}
