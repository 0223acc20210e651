"""A repository on a web server: any that serves files, with or without ranges.

    transport = Https(settings)                       # updates.repository: https://updates.example.com/int8d
    b"".join(transport.read("metadata/timestamp.json"))
    for data in transport.read("targets/digits/….safetensors", offset=1_000_000): …

The server's certificate is verified against ``updates.ca``, by default the system's authorities. Proxies that the
environment names (``https_proxy`` …) are not used, and no redirect is followed: what answers instead of the repository
is no repository.
"""

from __future__ import annotations

import re
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from urllib.parse import quote

import urllib3

from agent.config.tables import Tls, Updates
from agent.errors import ConfigError
from agent.mqtt.tls import Peer, context, explain
from agent.repository.pace import Pace, Patience
from agent.repository.reasons import Refused

SERVER = Peer(
    name="the repository's server",
    ca="updates.ca",
    cert="updates.cert",
    key="updates.cert_key",
    own="updates.cert and updates.cert_key",
    host="updates.repository",
    min_version="TLS 1.2",
    plain="name the port that does in updates.repository, or begin it with http://",
)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Https:
    """Of ``https://`` and ``http://``. Raises ``Refused("unreachable")`` for settings that can't work.

    Without TLS the signatures still hold; who listens on the network sees which releases a device takes.
    """

    def __init__(self, settings: Updates) -> None:
        self._base = settings.repository.rstrip("/")
        self._pace = Pace(settings.max_bytes_per_s)
        self._patience = Patience(settings.min_bytes_per_s, settings.stall_s)
        self._own = settings.cert is not None
        self._stall_s, self._connect_s = settings.stall_s, settings.request_timeout_s
        tls = None
        if self._base.startswith("https://"):
            try:
                tls = context(Tls(ca=settings.ca, cert=settings.cert, key=settings.cert_key), SERVER)
            except ConfigError as e:
                raise Refused("unreachable", str(e)) from e
        elif not self._base.startswith("http://"):
            raise Refused("unreachable", f"updates.repository '{self._base}' begins with neither https:// nor http://")
        self._pool = urllib3.PoolManager(
            num_pools=1,
            retries=False,
            timeout=urllib3.Timeout(connect=settings.request_timeout_s, read=settings.stall_s),
            ssl_context=tls,
            headers={"User-Agent": "int8d", "Accept-Encoding": "identity"},
        )

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See ``Transport``. A server without ranges gives the file from its start: what lies before is skipped."""
        if length is not None and length <= 0:
            return
        end = "" if length is None else str(offset + length - 1)
        headers = {"Range": f"bytes={offset}-{end}"} if offset or length is not None else {}
        answer = self._ask(path, headers)
        try:
            ranged = answer.status == 206
            if ranged:
                _check_range(path, answer.headers.get("Content-Range", ""), offset)
            left = length
            for data in _from(0 if ranged else offset, self._pieces(path, answer)):
                yield data[:left]
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        return
            if left is not None:
                raise Refused("truncated", f"'{path}' ends {left} bytes too soon")
        finally:
            answer.close()  # the rest of a body that is not wanted must not come
            answer.release_conn()

    def close(self) -> None:
        self._pool.clear()

    def _ask(self, path: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """An answer that has a body to read."""
        url = f"{self._base}/{quote(path)}"
        try:
            with _at_most(self._connect_s + self._stall_s):
                answer = self._pool.request("GET", url, headers={**self._pool.headers, **headers}, redirect=False,
                                            preload_content=False, decode_content=False)  # fmt: skip
        except _Late:
            raise Refused("too_slow", f"{url}: no whole answer in {self._connect_s + self._stall_s:g} s") from None
        except urllib3.exceptions.HTTPError as e:
            raise Refused("unreachable", f"{url}: {_why(e)}") from e
        try:
            self._judge(path, url, answer)
        except Refused:
            answer.close()
            raise
        return answer

    def _judge(self, path: str, url: str, answer: urllib3.BaseHTTPResponse) -> None:
        status, kind = answer.status, answer.headers.get("Content-Type", "").lower()
        if status in (403, 404, 410):
            raise Refused("not_found", f"{url}: HTTP {status}: is updates.repository right?")
        if status == 416:
            raise Refused("truncated", f"'{path}' on the server is shorter than what came of it before")
        if 300 <= status < 400:
            to = answer.headers.get("Location", "elsewhere")
            advice = "set updates.repository to where it is, or log in to the network"
            raise Refused("not_a_repository", f"{url} leads to {to}: {advice}")
        if status in (400, 401) and not self._own:
            advice = "does the server want a client certificate? Then set updates.cert and updates.cert_key"
            raise Refused("unreachable", f"{url}: HTTP {status}: {advice}")
        if status not in (200, 206):
            raise Refused("unreachable", f"{url}: HTTP {status}")
        if kind.startswith("text/html"):
            raise Refused("not_a_repository", f"{url} is a page for people: a captive portal's, or a wrong address")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused("not_a_repository", f"{url} comes compressed: the server must give files as they are")

    def _pieces(self, path: str, answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """The body, as it comes."""
        while True:
            since = time.monotonic()
            try:
                with _at_most(self._stall_s):
                    data = answer.read1(self._pace.piece)
            except (_Late, urllib3.exceptions.ReadTimeoutError):
                self._patience.came(0, time.monotonic() - since)
                raise Refused("too_slow", f"'{path}' stopped coming") from None
            except urllib3.exceptions.HTTPError as e:
                raise Refused("truncated", f"'{path}' broke off: {_why(e)}") from e
            if not data:
                return
            self._patience.came(len(data), time.monotonic() - since)
            self._pace.spend(len(data))
            yield data


class _Late(Exception):
    pass


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises ``_Late`` after that time: a socket's own time-out begins anew with each byte of a handshake, of headers
    and of a chunk's length. Of the main thread alone, which is where a step runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    since = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # Whose alarm it was before has it back.
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - since), 0.001) if left else 0)
        signal.signal(signal.SIGALRM, before)


def _from(skip: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Without the first ``skip`` bytes."""
    for data in pieces:
        if skip < len(data):
            yield data[skip:]
        skip = max(0, skip - len(data))


def _check_range(path: str, got: str, offset: int) -> None:
    """A server that gives another part than was asked for would mix up the file."""
    parsed = _RANGE.fullmatch(got.strip())
    if parsed is None or int(parsed[1]) != offset:
        raise Refused("not_a_repository", f"asked for '{path}' from byte {offset} on, the server gave '{got}'")


def _why(error: BaseException) -> str:
    """In words, from the error below urllib3's."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, ssl.SSLError):
            return explain(at, SERVER)
        found = next((a for a in at.args if isinstance(a, BaseException)), None)
        below = at.__cause__ or found or at.__context__
        if below is None or below is at:
            break
        at = below
    return str(at) or type(at).__name__
