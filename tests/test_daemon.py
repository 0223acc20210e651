"""The daemon as a process, against a real mosquitto."""

from __future__ import annotations

import json
import time

import pytest

from agent import Tuning
from agent.engine.answers import key_of
from agent.engine.batch_times import BatchTimes
from agent.engine.tuner import Answer
from agent.modelfile import read
from tests.agent_process import DIGITS, ROUTE, picture, truth

INFER = "int8d/box1/v2/models/digits/infer"


def test_a_picture_on_a_route_becomes_a_prediction_with_its_latency(agent, peer) -> None:
    agent()
    client = peer("predictions/#")
    client.send("cameras/7/frame", picture(0))
    message = client.receive()
    assert (message.topic, message.qos) == ("predictions/7", 1)
    reply = json.loads(message.payload)
    assert reply["model_name"] == "digits"
    assert reply["model_version"] == "1"
    assert reply["classes"][0]["label"] == truth()[0]
    assert reply["outputs"][0]["datatype"] == "FP32"
    assert reply["outputs"][0]["shape"] == [1, 10]
    parameters = reply["parameters"]
    stages = [parameters[f"{s}_us"] for s in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert all(us >= 0 for us in stages)
    assert abs(parameters["total_us"] - sum(stages)) <= len(stages)
    assert parameters["backend"] == "native"


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
def test_the_forty_pictures_are_answered_right(agent, peer, protocol) -> None:
    agent(broker=f'protocol = "{protocol}"')
    client = peer("predictions/#", v5=protocol == "auto")
    for i in range(40):
        client.send(f"cameras/{i}/frame", picture(i))
    found = {}
    while len(found) < 40:
        message = client.receive()
        found[int(message.topic.split("/")[1])] = json.loads(message.payload)["classes"][0]["label"]
    assert sum(found[i] == label for i, label in enumerate(truth())) >= 39


def test_response_topic_and_correlation_come_back_unchanged(agent, peer) -> None:
    agent()
    client = peer("my/replies")
    client.send(INFER, picture(3), ResponseTopic="my/replies", CorrelationData=b"\x00\xffabc", ContentType="image/png")
    message = client.receive()
    assert message.properties.CorrelationData == b"\x00\xffabc"
    assert message.properties.ContentType == "application/json"
    assert json.loads(message.payload)["classes"][0]["label"] == truth()[3]


def test_the_senders_clock_gives_source_to_publish(agent, peer) -> None:
    agent()
    client = peer("predictions/#")
    stamp = str(time.time_ns() // 1000 - 50_000)
    client.send("cameras/1/frame", picture(0), UserProperty=[("source_timestamp_us", stamp)])
    assert 50_000 <= client.reply()["parameters"]["source_to_publish_us"] < 5_000_000


def test_an_inference_request_over_3_1_1_is_answered_by_its_id(agent, peer) -> None:
    agent(broker='protocol = "3.1.1"')
    client = peer(f"{INFER}/response/#", v5=False)
    client.send(f"{INFER}/request/abc", picture(5))
    message = client.receive()
    assert message.topic == f"{INFER}/response/abc"
    assert json.loads(message.payload)["id"] == "abc"
    data = [[[0.0] for _ in range(8)] for _ in range(8)]
    request = {"id": "r1", "inputs": [{"name": "x", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": [data]}]}
    client.send(INFER, json.dumps(request).encode())
    message = client.receive()
    assert (message.topic, json.loads(message.payload)["id"]) == (f"{INFER}/response", "r1")


def test_several_routes_and_models(agent, peer) -> None:
    rest = (
        f'[[model]]\nname = "second"\npath = "{DIGITS}"\nversion = "9"\nthreads = 2\n' + ROUTE
        + '[[route]]\nsubscribe = "line/+/+/jpg"\nmodel = "second"\npublish = "out/{2}/{1}"\nqos = 0\n'
    )  # fmt: skip
    agent(rest=rest)
    client = peer("predictions/#", "out/#")
    client.send("line/a/b/jpg", picture(1))
    message = client.receive()
    reply = json.loads(message.payload)
    assert (message.topic, message.qos) == ("out/b/a", 0)
    assert (reply["model_name"], reply["model_version"]) == ("second", "9")
    client.send("cameras/x/frame", picture(1))
    assert client.receive().topic == "predictions/x"


def test_available_ready_and_stats_are_retained_and_offline_comes_last(agent, peer) -> None:
    running = agent()
    client = peer("predictions/#")
    client.send("cameras/1/frame", picture(0))
    client.reply()
    time.sleep(0.5)
    late = peer("int8d/box1/#")
    seen = {}
    while len(seen) < 3:
        message = late.receive()
        assert message.retain
        seen[message.topic.removeprefix("int8d/box1/")] = message.payload
    assert seen["available"] == b"online"
    assert seen["v2/models/digits/ready"] == b"true"
    stats = json.loads(seen["stats"])
    assert stats["counters"]["answered"] == 1
    assert stats["torch_imported"] is False
    assert set(stats["latency_us"]["digits"]["compute_infer"]) == {"count", "p50", "p90", "p99", "p99.9", "max"}
    assert running.terminate() == 0
    final = {}
    while not late.messages.empty():
        message = late.receive()
        final[message.topic] = message.payload
    assert final["int8d/box1/available"] == b"offline"


def test_a_killed_agent_leaves_its_will(agent, peer) -> None:
    running = agent()
    client = peer("int8d/box1/available")
    assert client.receive().payload == b"online"
    running.kill()
    assert client.receive(10).payload == b"offline"


def test_small_memory_quick_start_and_no_torch(agent, peer) -> None:
    running = agent()
    client = peer("predictions/#")
    for i in range(20):
        client.send("cameras/1/frame", picture(i))
        client.reply()
    assert running.resident_mb() < 70
    assert running.ready_s < 5  # under 1 s on an idle box; bench/roundtrip.py measures it
    print(f"ready after {running.ready_s:.2f} s, {running.resident_mb():.1f} MB")


def test_more_replies_than_the_queue_holds_are_refused_and_all_answered(agent, peer) -> None:
    agent(rest=ROUTE.replace("cameras/+/frame", "cameras/+/frame") + 'max_queue = 2\noverload = "reject"\n')
    client = peer("predictions/#")
    for i in range(60):
        client.client.publish(f"cameras/{i}/frame", picture(i % 40), 1)
    replies = [client.reply() for _ in range(60)]
    refused = [r for r in replies if "error" in r]
    assert all(r["error"]["code"] == "overloaded" for r in refused)
    assert len(refused) < 60


def test_a_deadline_that_passed_is_answered_as_expired(agent, peer) -> None:
    # A picture that takes long to decode keeps the worker; the ones behind it have a millisecond.
    import io

    import numpy as np
    from PIL import Image

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8).astype(np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG", compress_level=0)
    slow = '[[route]]\nsubscribe = "slow"\nmodel = "digits"\npublish = "slow/out"\n'
    agent(rest=ROUTE + "deadline_ms = 1\n" + slow, top="[limits]\nmax_payload_bytes = 100000000\n")
    client = peer("predictions/#", "slow/out")
    client.client.publish("slow", buffer.getvalue(), 1)
    for i in range(5):
        client.client.publish(f"cameras/{i}/frame", picture(i), 1)
    replies = [client.reply() for _ in range(6)]
    expired = [r["error"] for r in replies if "error" in r]
    assert len(expired) >= 4
    assert {e["code"] for e in expired} == {"expired"}
    assert all("stage" in e["message"] for e in expired)


def test_what_waits_is_computed_together_by_replicas(agent, peer, tmp_path) -> None:
    answers = tmp_path / "answers"
    key = key_of(read(DIGITS), "auto", 1)  # as if it had been timed on this box
    Tuning(answers).remember(key, "digits", Answer({}, {}, 0, 0, True, 0))
    Tuning(answers).remember_batches(key, "digits", BatchTimes({1: 100, 2: 210, 4: 200}, 16))
    running = agent(top=f'tuner = {{ folder = "{answers}" }}\n', rest=f"replicas = 2\nbatch_wait_us = 100000\n{ROUTE}")
    client = peer("predictions/#", "int8d/box1/stats")
    for i in range(80):
        client.client.publish(f"cameras/{i}/frame", picture(i % 40), 1)
    labels, sizes, counted = {}, {}, {}
    while len(labels) < 80 or sum(counted.values()) < 80:
        message = client.receive()
        body = json.loads(message.payload)
        if message.topic.endswith("stats"):
            counted = body["batch_sizes"].get("digits", {})
            continue
        number = int(message.topic.split("/")[1])
        labels[number] = body["classes"][0]["label"]
        sizes[number] = body["parameters"]["batch_size"]
    assert sum(labels[i] == truth()[i % 40] for i in range(80)) >= 78
    assert {1, 4} >= set(sizes.values()) >= {4}
    assert counted == {str(size): list(sizes.values()).count(size) for size in sorted(set(sizes.values()))}
    assert running.terminate() == 0
