"""Limits of a message's sizes, rate and Response Topic; docs/limits.md lists them all."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import pytest

from agent.mqtt.gate import Gate
from agent.mqtt.messages import Incoming
from agent.mqtt.routes import Filter
from agent.serving.rate import RateLimit
from agent.validate import Limits as ModelLimits
from agent.wire.limits import Limits
from tests.agent_process import ROOT, picture, truth

MESSAGE = Incoming("a", b"x", 1, 1, False, 1)
SMALL = Limits(max_payload_bytes=10, max_topic_length=10, max_user_properties=2, max_property_bytes=20)
JUST = {
    "payload": {"payload": bytes(10)},
    "topic": {"topic": "t" * 10},
    "user properties": {"user": {"a": "", "b": ""}},
    "bytes of user properties": {"user": {"a" * 10: "b" * 10}},
    "response topic": {"response_topic": "r" * 20},
    "correlation": {"correlation": bytes(20)},
    "content type": {"content_type": "c" * 20},
    "all": {"response_topic": "r" * 5, "correlation": bytes(5), "content_type": "c" * 5, "user": {"a": "bbbb"}},
}
TOO_MUCH = {
    "payload": ({"payload": bytes(11)}, "max_payload_bytes"),
    "payload that was not kept": ({"missing": 10}, "max_payload_bytes"),
    "topic": ({"topic": "t" * 11}, "max_topic_length"),
    "user properties": ({"user": {"a": "", "b": "", "c": ""}}, "max_user_properties"),
    "bytes of user properties": ({"user": {"a" * 10: "b" * 11}}, "max_property_bytes"),
    "response topic": ({"response_topic": "r" * 21}, "max_property_bytes"),
    "correlation": ({"correlation": bytes(21)}, "max_property_bytes"),
    "content type": ({"content_type": "c" * 21}, "max_property_bytes"),
    "all": (JUST["all"] | {"correlation": bytes(6)}, "max_property_bytes"),
}


@pytest.mark.parametrize("case", JUST)
def test_what_just_fits_passes(case: str) -> None:
    assert Gate(SMALL).refusal(replace(MESSAGE, **JUST[case])) is None


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_is_too_much_is_refused_by_the_limits_name(case: str) -> None:
    fields, limit = TOO_MUCH[case]
    refusal = Gate(SMALL).refusal(replace(MESSAGE, **fields))
    assert refusal is not None
    assert refusal[0] == "invalid_input"
    assert f"limits.{limit}" in refusal[1]


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _allowed(rate: RateLimit, source: str, count: int) -> int:
    return sum(rate.allow(source) for _ in range(count))


def test_a_source_has_its_burst_and_then_its_rate() -> None:
    clock = _Clock()
    rate = RateLimit(2.0, 5, 10, clock)
    assert _allowed(rate, "a", 20) == 5
    assert _allowed(rate, "b", 20) == 5  # another's is its own
    clock.now += 1.0
    assert _allowed(rate, "a", 20) == 2
    clock.now += 1000.0
    assert _allowed(rate, "a", 20) == 5  # no more than the burst is saved up


def test_a_steady_source_at_its_rate_is_never_refused() -> None:
    clock = _Clock()
    rate = RateLimit(8.0, 1, 10, clock)
    for _ in range(1000):
        assert rate.allow("a")
        clock.now += 0.125


def test_inventing_sources_gains_nothing_and_takes_no_memory() -> None:
    clock = _Clock()
    rate = RateLimit(1.0, 2, 10, clock)
    assert sum(rate.allow(f"source {i}") for i in range(1000)) == 10 + 2  # ten buckets, and one for all others
    assert len(rate._full_at) == 10
    clock.now += 2.0  # all were quiet long enough
    assert _allowed(rate, "new", 5) == 2
    assert sum(rate.allow(f"another {i}") for i in range(1000)) <= 10 + 2
    assert len(rate._full_at) == 10


def test_over_the_rate_the_sender_is_told_and_others_are_served(agent, peer) -> None:
    agent(top="[limits]\nmax_messages_per_s = 0.01\nmax_burst = 2\n")
    client = peer("predictions/#")
    for i in range(5):
        client.send("cameras/1/frame", picture(i))
    replies = [client.reply() for _ in range(5)]
    codes = sorted(r["error"]["code"] if "error" in r else "served" for r in replies)
    assert codes == ["rate_limited"] * 3 + ["served"] * 2
    client.send("cameras/2/frame", picture(0))
    assert client.reply()["classes"][0]["label"] == truth()[0]


def test_a_message_of_many_properties_is_refused_and_the_next_served(agent, peer) -> None:
    agent()
    client = peer("predictions/#")
    client.send("cameras/1/frame", picture(0), UserProperty=[(f"name {i}", "x") for i in range(65)])
    assert "max_user_properties" in client.reply()["error"]["message"]
    client.send("cameras/1/frame", picture(0), CorrelationData=bytes(20_000))
    reply = client.receive()
    assert b"max_property_bytes" in reply.payload
    assert reply.properties.CorrelationData == bytes(20_000)
    client.send(f"cameras/{'x' * 2000}/frame", picture(0))
    assert "max_topic_length" in client.reply()["error"]["message"]
    client.send("cameras/1/frame", picture(0))
    assert client.reply()["classes"][0]["label"] == truth()[0]


# Response Topics

ALLOWED = ("clients/7/reply", "int8d/box1/clients/7/reply", "int8d/box2/available", "predictions", "int8d/box1x/stats")
FORBIDDEN = ("int8d/box1/available", "int8d/box1/stats", "int8d/box1", "int8d/box1/v2/models/digits/ready",
             "int8d/box1/dead-letter", "int8d/box1/clients", "predictions/7", "a/+", "a/#", "$SYS/x", "")  # fmt: skip


def _gate() -> Gate:
    return Gate(Limits(), "int8d/box1", [Filter("predictions/+")])


@pytest.mark.parametrize("topic", ALLOWED)
def test_a_response_topic_of_the_senders_own_is_used(topic: str) -> None:
    gate = _gate()
    for _ in range(2):
        assert gate.reply_topic(replace(MESSAGE, response_topic=topic)) == topic


@pytest.mark.parametrize("topic", FORBIDDEN)
def test_a_response_topic_that_would_speak_for_the_device_counts_as_none(topic: str) -> None:
    gate = _gate()
    for _ in range(2):
        assert gate.reply_topic(replace(MESSAGE, response_topic=topic)) is None


def test_a_device_does_not_forge_its_own_state_for_a_sender(agent, peer) -> None:
    agent()
    client = peer("predictions/#", "int8d/box1/available")
    assert client.receive().payload == b"online"
    client.send("cameras/1/frame", picture(0), ResponseTopic="int8d/box1/available")
    assert client.receive().topic == "predictions/1"
    client.send("cameras/1/frame", picture(0), ResponseTopic="predictions/2")
    assert client.receive().topic == "predictions/1"


def test_the_table_lists_every_limit_with_its_default() -> None:
    text = (ROOT / "docs" / "limits.md").read_text()
    for table, struct in (("limits", Limits()), ("model_limits", ModelLimits())):
        for key, value in msgspec.structs.asdict(struct).items():
            row = re.search(rf"^\| `{table}\.{key}` \| ([\d, .]+) \|", text, re.M)
            assert row is not None, f"{table}.{key} is not in docs/limits.md"
            assert float(row[1].replace(",", "")) == value, f"{table}.{key}"
