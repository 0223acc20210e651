"""HTTP, against the daemon as a process: what is asked for is answered, as over MQTT."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from agent.engine import load
from agent.modelfile import read
from agent.wire.images import ImageDecoder
from tests.agent_process import DIGITS, ROUTE, picture, truth
from tests.http_agent import INFER, Planted, Served

MakeServed = Callable[..., Served]


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
