"""HTTP, against the daemon as a process: what is asked for is answered, what is hostile is refused, and it lives on."""

from __future__ import annotations

import http.client
import io
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.engine import load
from agent.modelfile import read
from agent.wire.images import ImageDecoder
from tests.agent_process import DIGITS, ROUTE, Agent, picture, truth
from tests.broker import Mosquitto

INFER = "/v2/models/digits/infer"
MakeServed = Callable[..., "Served"]


class Served:
    """An agent with HTTP on a free port."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        agent.wait_log("http on 127.0.0.1:")
        found = re.search(r"http on 127\.0\.0\.1:(\d+)", agent.log())
        assert found is not None
        self.port = int(found[1])

    def ask(self, method: str, path: str, body: bytes | None = None, timeout: float = 20, **fields: str):
        """Status, fields in lower case, and the body: parsed, if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in fields.items()})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        headers = {k.lower(): v for k, v in response.getheaders()}
        is_json = headers.get("content-type") == "application/json" and data
        return response.status, headers, json.loads(data) if is_json else data

    def raw(self, data: bytes, timeout: float = 20) -> bytes:
        """All that comes back until the agent closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            return exchange(sock, data)

    def metrics(self) -> dict[str, float]:
        """By name and labels, as the page has them."""
        _, _, page = self.ask("GET", "/metrics")
        families = text_string_to_metric_families(page.decode())
        return {s.name + "".join(f" {v}" for v in s.labels.values()): s.value for f in families for s in f.samples}


def exchange(sock: socket.socket, data: bytes) -> bytes:
    received = b""
    try:
        if data:
            sock.sendall(data)
        while more := sock.recv(65536):
            received += more
    except ConnectionError:
        pass  # it closed before it had all
    return received


class Planted(Agent):
    module = "tests.planted"


@pytest.fixture
def served(tmp_path: Path, broker: Mosquitto, stack: ExitStack) -> MakeServed:
    def make(
        lines: str = "", rest: str = ROUTE, kind: type[Agent] = Agent, top: str = "", **environment: str
    ) -> Served:
        rest = f"{rest}\n[http]\nenabled = true\nport = 0\n{lines}\n"
        agent = kind(tmp_path, broker.port, rest, top=top, environment=environment)
        stack.callback(agent.kill)
        return Served(agent)

    return make


def test_the_protocols_paths(served: MakeServed) -> None:
    box = served()
    status, _, about = box.ask("GET", "/v2")
    assert (status, about["name"], about["extensions"]) == (200, "int8d", ["binary_tensor_data"])
    assert box.ask("GET", "/v2/health/live")[::2] == (200, {"live": True})
    assert box.ask("GET", "/v2/health/ready")[::2] == (200, {"ready": True})
    for path in ("/v2/models/digits", "/v2/models/digits/versions/1"):
        status, _, model = box.ask("GET", path)
        assert status == 200
        assert model == {
            "name": "digits", "versions": ["1"], "platform": "int8d",
            "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 8, 8, 1]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 10]}],
        }  # fmt: skip
        assert box.ask("GET", f"{path}/ready")[::2] == (200, {"ready": True})
        assert box.ask("POST", f"{path}/infer", picture(0))[2]["classes"][0]["label"] == truth()[0]
    status, fields, body = box.ask("HEAD", "/v2")
    assert (status, body, int(fields["content-length"]) > 0) == (200, b"", True)


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/", 404), ("GET", "/v3", 404), ("GET", "/v2/models", 404), ("GET", "/v2/models/nope", 404),
    ("GET", "/v2/models/nope/ready", 404), ("GET", "/v2/models/digits/versions/2", 404),
    ("GET", "/v2/models/digits/versions/2/ready", 404), ("GET", "/v2/models/digits/x", 404),
    ("GET", "/../etc/passwd", 404), ("GET", "/v2/models/%64igits", 404), ("GET", INFER, 405), ("PUT", INFER, 405),
    ("POST", "/v2", 405), ("DELETE", "/metrics", 405), ("POST", "/v2/health/live", 405),
    ("POST", "/v2/models/digits/versions/2/infer", 404), ("POST", "/v2/models/nope/infer", 404),
])  # fmt: skip
def test_what_is_not_there_is_said(one: Served, method: str, path: str, status: int) -> None:
    found, fields, body = one.ask(method, path, b"{}" if method == "POST" else None)
    assert found == status
    assert body["error"]
    assert ("allow" in fields) == (status == 405)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One agent for tests that only look; it has no broker, which HTTP does not need."""
    folder = tmp_path_factory.mktemp("one")
    agent = Agent(folder, 1, ROUTE + "[http]\nenabled = true\nport = 0\ntimeout_s = 1.0\n", wait=False)
    yield Served(agent)
    assert agent.process.poll() is None, agent.log()
    assert "Traceback" not in agent.log()
    agent.kill()


def _as_model_input(index: int) -> np.ndarray:
    """What the model's own preprocessing makes of a picture of 8x8: asked with bytes, it must answer the same."""
    model = read(DIGITS)
    assert model.header.preprocess is not None
    return ImageDecoder(model.header.preprocess, load(model).inputs["x"]).decode(picture(index))


def test_every_kind_of_payload_gets_the_same_answer(one: Served) -> None:
    pixels = _as_model_input(3)
    expected = one.ask("POST", INFER, picture(3), content_type="image/png")[2]
    assert expected["classes"][0]["label"] == truth()[3]
    npy = io.BytesIO()
    np.save(npy, pixels)
    shape = list(pixels.shape)
    plain = {
        "id": "a1",
        "inputs": [{"name": "x", "shape": shape, "datatype": "UINT8", "data": pixels.ravel().tolist()}],
    }
    binary = {"inputs": [{"name": "x", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": 64}}]}
    head = json.dumps(binary).encode()
    raw = pixels.tobytes()
    asked = {
        "a picture by its first bytes": (picture(3), {}),
        "what curl calls bytes": (picture(3), {"content_type": "application/x-www-form-urlencoded"}),
        "npy": (npy.getvalue(), {"content_type": "application/x-npy"}),
        "raw": (raw, {"content_type": "application/octet-stream"}),
        "JSON": (json.dumps(plain).encode(), {"content_type": "application/json"}),
        "binary": (head + raw, {"inference_header_content_length": str(len(head)),
                                "content_type": "application/octet-stream"}),
        "binary, with room behind the JSON": (head + b"   " + raw,
                                              {"inference_header_content_length": str(len(head) + 3)}),
        "binary, length read from the JSON": (head + raw, {"content_type": "application/json"}),
        "one bare tensor, as Triton has it": (raw, {"inference_header_content_length": "0"}),
    }  # fmt: skip
    for name, (body, fields) in asked.items():
        status, _, reply = one.ask("POST", INFER, body, **fields)
        assert status == 200, (name, reply)
        assert reply["outputs"] == expected["outputs"], name
        assert reply.get("id") == ("a1" if name == "JSON" else None)
        assert {"queue_us", "compute_infer_us", "total_us"} < reply["parameters"].keys()


@pytest.mark.parametrize(("body", "fields", "why"), [
    (b"", {}, "64 bytes"),
    (b"{", {}, "not an Open Inference"),
    (b'{"id":"9","inputs":[]}', {}, "no inputs"),
    (b"GIF89a", {"content_type": "image/gif"}, "not taken"),
    (b"\x89PNG\r\n\x1a\nrubbish", {}, "picture"),
    (b"{}", {"inference_header_content_length": "3"}, "0..2"),
    (b"{}", {"inference_header_content_length": "-1"}, "0..2"),
    (b"{}", {"inference_header_content_length": "1"}, "not an Open Inference"),
    (b"{} ", {"content_type": "application/json; json-size=x"}, "json-size"),
])  # fmt: skip
def test_an_input_that_does_not_fit_is_400_with_the_reason(one: Served, body: bytes, fields: dict, why: str) -> None:
    status, _, reply = one.ask("POST", INFER, body, **fields)
    assert (status, reply["code"]) == (400, "invalid_input")
    assert why in reply["error"]
    assert reply.get("id") == ("9" if b'"9"' in body else None)


def test_metrics_agree_with_what_was_asked(one: Served) -> None:
    before = one.metrics()
    for i in range(5):
        assert one.ask("POST", INFER, picture(i))[0] == 200
    assert one.ask("POST", INFER, b"x")[0] == 400
    assert one.ask("POST", "/v2/models/nope/infer", b"x")[0] == 404
    after = one.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("int8d_inference_request_success_total digits 1") == 5
    assert grown("int8d_inference_request_failure_total invalid_input") == 1
    assert grown("int8d_inference_request_failure_total unknown_model") == 1
    assert grown("int8d_received_total") == 7
    for stage in ("request", "queue", "compute_input", "compute_infer", "compute_output", "publish"):
        assert grown(f"int8d_inference_{stage}_duration_seconds_count digits 1") == 5
        assert grown(f"int8d_inference_{stage}_duration_seconds_bucket digits 1 +Inf") == 5
    assert after["int8d_broker_connected"] == 0
    assert after["process_resident_memory_bytes"] > 1e6


def test_messages_and_http_are_counted_together(served: MakeServed, peer) -> None:
    box = served()
    client = peer("predictions/#", "int8d/box1/stats")
    client.send("cameras/1/frame", picture(0))
    assert box.ask("POST", INFER, picture(1))[0] == 200
    until = time.monotonic() + 20
    document: dict = {"counters": {"answered": 0}}
    while document["counters"]["answered"] < 2 and time.monotonic() < until:
        message = client.receive()
        if message.topic.endswith("/stats"):
            document = json.loads(message.payload)
    assert document["counters"]["answered"] == document["counters"]["received"] == 2
    assert document["latency_us"]["digits"]["total"]["count"] == 2
    found = box.metrics()
    assert found["int8d_inference_request_success_total digits 1"] == 2
    assert found["int8d_broker_connected"] == 1


def test_deadline_overload_and_liveness_while_a_request_hangs(served: MakeServed) -> None:
    # As systemd would say it; half of it is what liveness goes by.
    box = served("max_queue = 1\nmax_connections = 4", kind=Planted, WATCHDOG_USEC="1000000")
    assert box.ask("GET", "/v2/health/live")[0] == 200
    results: dict[str, tuple] = {}

    def ask(name: str, path: str, body: bytes) -> threading.Thread:
        thread = threading.Thread(target=lambda: results.update({name: box.ask("POST", path, body)}))
        thread.start()
        return thread

    hanging = ask("hanging", INFER, b"PLANT sleep 4")
    while box.metrics()["int8d_received_total"] < 1 or box.metrics()["int8d_inference_pending_requests"]:
        time.sleep(0.01)
    waiting = ask("waiting", f"{INFER}?timeout=1500000", picture(1))  # microseconds
    while box.metrics()["int8d_inference_pending_requests"] < 1:
        time.sleep(0.01)
    status, fields, reply = box.ask("POST", INFER, picture(2))
    assert (status, reply["code"], fields["retry-after"]) == (429, "overloaded", "1")
    waiting.join()
    status, _, reply = results["waiting"]
    assert (status, reply["code"]) == (504, "expired")
    assert "queue" in reply["error"]
    while box.ask("GET", "/v2/health/live")[0] == 200:
        assert hanging.is_alive()
    assert box.ask("GET", "/v2/health/live")[::2] == (503, {"live": False})
    assert box.ask("GET", "/v2/health/ready")[0] == 200
    hanging.join()
    assert results["hanging"][0] == 400  # 'goes on as a payload that can't be understood'
    assert box.ask("GET", "/v2/health/live")[0] == 200
    assert box.ask("POST", INFER, picture(2))[2]["classes"][0]["label"] == truth()[2]


def test_a_stop_answers_what_is_under_way_and_closes_what_idles(served: MakeServed) -> None:
    box = served("timeout_s = 3600.0", kind=Planted, top="drain_timeout_s = 3600")
    idle = http.client.HTTPConnection("127.0.0.1", box.port, timeout=30)
    idle.request("GET", "/v2/health/ready")
    assert idle.getresponse().read() == b'{"ready":true}'
    results: list[tuple] = []
    threads = []
    for body in (b"PLANT sleep 1", picture(4)):
        threads.append(threading.Thread(target=lambda body=body: results.append(box.ask("POST", INFER, body))))
        threads[-1].start()
        while box.metrics()["int8d_received_total"] < len(threads):
            time.sleep(0.01)
    assert box.agent.terminate() == 0
    for thread in threads:
        thread.join()
    assert sorted(status for status, _, _ in results) == [200, 400]
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""


def test_a_port_that_is_taken_keeps_nobody_from_mqtt(agent, peer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        box = agent(rest=f"{ROUTE}[http]\nenabled = true\nport = {port}\n")
        box.wait_log(f"can't listen on 127.0.0.1:{port}")
        client = peer("predictions/#")
        client.send("cameras/1/frame", picture(0))
        assert client.reply()["classes"][0]["label"] == truth()[0]
    box.wait_log(f"http on 127.0.0.1:{port}")
    assert box.terminate() == 0


def test_an_open_address_is_warned_of_and_a_loopback_is_not(served: MakeServed, agent) -> None:
    assert "whoever reaches it" not in served().agent.log()
    box = agent(rest=f'{ROUTE}[http]\nenabled = true\nport = 0\nhost = "0.0.0.0"\n')
    box.wait_log("whoever reaches it may use every model")
    found = re.search(r"http on 0\.0\.0\.0:(\d+)", box.log())
    assert found is not None
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]))
    connection.request("GET", "/v2", headers={"Host": "box1.example"})  # names are for those who are reached by name
    assert connection.getresponse().status == 200


def _post(body: bytes, *fields: str, path: str = INFER) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


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
    "chunks and a length": (_post(b"0\r\n\r\n", "Transfer-Encoding: chunked"), 411),
    "another expectation": (_post(b"x", "Expect: rabbit"), 417),
    "a web page": (_post(b"x", "Origin: https://example.org"), 403),
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
    answer = one.raw(_post(picture(0)) + _post(picture(1)) + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"200"]
    assert re.findall(rb'"classes":\[\{"label":"(\d)"', answer) == [label.encode() for label in truth()[:2]]
    old = one.raw(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert old.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in old


def test_the_body_waits_for_a_client_that_asks_first(one: Served) -> None:
    body = picture(5)
    with socket.create_connection(("127.0.0.1", one.port), 20) as sock:
        head, _, _ = _post(body, "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert b'"label":"' + truth()[5].encode() in exchange(sock, body)
    answer = one.raw(_post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 99999999"))
    assert answer.startswith(b"HTTP/1.1 413 ")  # told before it sends


@pytest.mark.parametrize("start", [b"", b"G", b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\n", _post(b"0123456789")[:-3]])
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
    head = _post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 50000000")

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
            sock.sendall(_post(picture(0)))
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
        _post(picture(0), "Content-Type: image/png"),
        _post(body, "Content-Type: application/json"),
        _post(tail + bytes(64), f"Inference-Header-Content-Length: {len(tail)}"),
        _post(body, path=f"{INFER}?timeout=100&priority=3"),
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
