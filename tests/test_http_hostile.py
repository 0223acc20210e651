"""Hostile HTTP, against the daemon as a process: it is refused or closed, within bounds, and the daemon lives on."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.agent_process import ROUTE, picture, truth
from tests.http_agent import INFER, Served, exchange, post

MakeServed = Callable[..., Served]


BAD = {
    "no host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: a\r\n\r\n", 400),
    "garbage": (b"\x00\xff\x16\x03\x01 rubbish\r\n\r\n", 400),
    "TLS to a plain port": (bytes.fromhex("1603010200010001fc0303") + bytes(64) + b"\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /v2\r\n\r\n", 400),
    "an absolute target": (b"GET http://a/v2 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a folded line": (b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b\r\n c\r\n\r\n", 400),
    "a bare line feed": (b"GET /v2 HTTP/1.1\nHost: 127.0.0.1\n\r\n\r\n", 400),
    "a space before the colon": (b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length : 5\r\n\r\nhello", 400),
    "a zero byte": (b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nA: \x00\r\n\r\n", 400),
    "two lengths": (b"POST /v2 HTTP/1.1\r\nHost: ::1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    "a negative length": (b"POST /v2 HTTP/1.1\r\nHost: ::1\r\nContent-Length: -5\r\n\r\n", 400),
    "a signed length": (b"POST /v2 HTTP/1.1\r\nHost: ::1\r\nContent-Length: +5\r\n\r\nhello", 400),
    "a length in hex": (b"POST /v2 HTTP/1.1\r\nHost: ::1\r\nContent-Length: 0x5\r\n\r\nhello", 400),
    "a length of 100 digits": (b"POST /v2 HTTP/1.1\r\nHost: ::1\r\nContent-Length: " + b"9" * 100 + b"\r\n\r\n", 400),
    "a petabyte": (b"POST /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999999999\r\n\r\n", 413),
    "chunks": (b"POST /v2 HTTP/1.1\r\nHost: ::1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 411),
    "chunks and a length": (post(b"0\r\n\r\n", "Transfer-Encoding: chunked"), 411),
    "another expectation": (post(b"x", "Expect: rabbit"), 417),
    "a web page": (post(b"x", "Origin: https://example.org"), 403),
    "a name bent to this box": (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
    "a header without end": (b"GET /v2 HTTP/1.1\r\n" + b"A: b\r\n" * 100_000, 431),
    "a line without end": (b"GET /" + b"a" * 100_000, 431),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_request_that_can_be_read_in_two_ways_is_refused(one: Served, case: str) -> None:
    data, status = BAD[case]
    answer = one.raw(data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1 ") == 1  # what follows is not taken for a second request
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_connections_are_kept_and_requests_may_follow_one_another(one: Served) -> None:
    last = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    answer = one.raw(post(picture(0)) + post(picture(1)) + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"200"]
    assert re.findall(rb'"classes":\[\{"label":"(\d)"', answer) == [label.encode() for label in truth()[:2]]
    old = one.raw(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert old.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in old


def test_the_body_waits_for_a_client_that_asks_first(one: Served) -> None:
    body = picture(5)
    with socket.create_connection(("127.0.0.1", one.port), 20) as sock:
        head, _, _ = post(body, "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert b'"label":"' + truth()[5].encode() in exchange(sock, body)
    answer = one.raw(post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 99999999"))
    assert answer.startswith(b"HTTP/1.1 413 ")  # told before it sends


@pytest.mark.parametrize("start", [b"", b"G", b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\n", post(b"0123456789")[:-3]])
def test_who_dawdles_is_dropped(one: Served, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", one.port), 20) as sock:
        sock.sendall(start)
        answer = b""
        for _ in range(100):  # a byte now and then does not help: timeout_s is for the whole
            try:
                sock.settimeout(0.1)
                more = sock.recv(65536)
                if not more:
                    break
                answer += more
            except TimeoutError:
                if start and not answer and start.endswith(b"\r\n"):
                    sock.send(b"A: b\r\n")
            except ConnectionError:
                break
        else:
            pytest.fail("still connected after 10 s")
    assert answer.startswith(b"HTTP/1.1 408 ") if start else answer == b""


def test_one_connection_too_many_is_told_so(served: MakeServed) -> None:
    box = served("max_connections = 3\nmax_queue = 2")
    kept = [socket.create_connection(("127.0.0.1", box.port), 20) for _ in range(3)]
    for sock in kept:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    for _ in range(20):
        answer = box.raw(b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"max_connections" in answer
    kept.pop().close()
    until = time.monotonic() + 20
    while box.raw(b"GET /v2 HTTP/1.0\r\n\r\n")[:12] != b"HTTP/1.1 200":
        assert time.monotonic() < until
    for sock in kept:
        sock.close()


def test_bodies_that_are_only_announced_take_no_memory_and_have_a_bound(served: MakeServed) -> None:
    box = served(rest=f"{ROUTE}[limits]\nmax_payload_bytes = 50000000\nmax_queued_bytes = 120000000\n")
    before = box.agent.resident_mb()
    head = post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 50000000")

    def announce() -> tuple[socket.socket, bytes]:
        sock = socket.create_connection(("127.0.0.1", box.port), 20)
        sock.sendall(head)
        return sock, sock.recv(65536)

    for _ in range(5):
        taken = []
        until = time.monotonic() + 20
        while len(taken) < 2:  # what was taken the time before is given back, in a moment
            sock, answer = announce()
            if answer.startswith(b"HTTP/1.1 100 "):
                sock.sendall(b"x" * 1000)
                taken.append(sock)
            else:
                sock.close()
                assert time.monotonic() < until, answer
        sock, answer = announce()
        sock.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"max_queued_bytes" in answer
        for sock in taken:
            sock.close()
    assert box.agent.resident_mb() < before + 20


def test_a_client_that_leaves_costs_nobody_anything(one: Served) -> None:
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", one.port), 20) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # ends with RST
            sock.sendall(post(picture(0)))
    until = time.monotonic() + 20
    while one.metrics()["int8d_inference_pending_requests"] and time.monotonic() < until:
        time.sleep(0.01)
    assert one.ask("POST", INFER, picture(1))[2]["classes"][0]["label"] == truth()[1]


def _mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0:
                data[at:at] = draw.randbytes(draw.randrange(1, 20))
            case 1:
                del data[at : at + draw.randrange(1, 20)]
            case 2 if data:
                data[at - 1] ^= 1 << draw.randrange(8)
            case 3:
                data[at:at] = draw.choice([b"\r\n", b"\n", b"\r\n\r\n", b": ", b" ", b"\x00", b"Content-Length: 5\r\n",
                                           b"Transfer-Encoding: chunked\r\n", b"9" * 30, b"%00", b"/.."])  # fmt: skip
            case 4:
                data[at:at] = data[at : at + draw.randrange(1, 200)]
            case 5:
                del data[at:]
    return bytes(data)


def test_a_thousand_mutated_requests_are_each_answered_or_closed(one: Served) -> None:
    draw = random.Random(20)
    shape = '"shape":[1,8,8,1],"datatype":"UINT8"'
    body = f'{{"inputs":[{{"name":"x",{shape},"data":{list(range(64))}}}]}}'.encode()
    tail = f'{{"inputs":[{{"name":"x",{shape},"parameters":{{"binary_data_size":64}}}}]}}'.encode()
    seeds = [
        post(picture(0), "Content-Type: image/png"),
        post(body, "Content-Type: application/json"),
        post(tail + bytes(64), f"Inference-Header-Content-Length: {len(tail)}"),
        post(body, path=f"{INFER}?timeout=100&priority=3"),
        b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n",
        b"GET /v2/models/digits HTTP/1.1\r\nHost: localhost:1\r\nConnection: keep-alive\r\n\r\n",
    ]
    statuses: dict[bytes, int] = {}
    lock = threading.Lock()
    cases = iter([_mutated(draw, seeds) for _ in range(1000)])

    def work() -> None:
        while True:
            with lock:
                data = next(cases, None)
            if data is None:
                return
            with socket.create_connection(("127.0.0.1", one.port), 20) as sock:
                try:
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                except ConnectionError:
                    pass  # refused before all was sent
                answer = exchange(sock, b"")  # times out, and fails, if it is neither answered nor closed
            for status in re.findall(rb"HTTP/1\.1 (\d\d\d)", answer) or [b"closed"]:
                with lock:
                    statuses[status] = statuses.get(status, 0) + 1

    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=guarded) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(statuses.values()) >= 1000
    assert statuses.keys() >= {b"200", b"400", b"404", b"closed"}
    assert b"500" not in statuses
    assert one.ask("POST", INFER, picture(1))[2]["classes"][0]["label"] == truth()[1]
    until = time.monotonic() + 20
    while (left := _unaccounted(one.metrics())) and time.monotonic() < until:
        time.sleep(0.01)  # a reply is counted once it has been written
    assert left == 0


def _unaccounted(metrics: dict[str, float]) -> float:
    """Inputs that were received and neither answered nor refused."""
    ends = ("int8d_inference_request_success_total", "int8d_inference_request_failure_total", "int8d_publish_failed")
    return metrics["int8d_received_total"] - sum(v for name, v in metrics.items() if name.startswith(ends))
