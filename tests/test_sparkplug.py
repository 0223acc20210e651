"""Sparkplug B: payloads read by google.protobuf with the specification's field numbers, sessions by a real broker."""

from __future__ import annotations

import json
import queue
import time
from pathlib import Path
from typing import Any

import pytest

from agent.cli import main
from agent.integrations.sparkplug import EdgeNode, flatten
from agent.integrations.sparkplug_b import Metric, datatype, encode, wants
from tests.agent_process import DIGITS, ROUTE, Agent, Peer, picture
from tests.pki import locked_broker, tls_toml

protobuf = pytest.importorskip("google.protobuf")

ENABLED = ROUTE + '[sparkplug]\nenabled = true\ngroup = "plant"\n'
ALL = "spBv1.0/plant/#"
INT64, DOUBLE, BOOLEAN, STRING = 4, 10, 11, 12


def _message() -> Any:
    """The class of org.eclipse.tahu.protobuf.Payload, of the fields and numbers in Sparkplug 3.0, section 6.4.1."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    types = {"string": 9, "uint64": 4, "uint32": 13, "bool": 8, "float": 2, "double": 1, "bytes": 12}
    file = descriptor_pb2.FileDescriptorProto(name="sparkplug_b.proto", package="spb", syntax="proto2")
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    metric.oneof_decl.add(name="value")
    for name, number, kind in (
        ("name", 1, "string"), ("alias", 2, "uint64"), ("timestamp", 3, "uint64"), ("datatype", 4, "uint32"),
        ("is_historical", 5, "bool"), ("is_transient", 6, "bool"), ("is_null", 7, "bool"), ("int_value", 10, "uint32"),
        ("long_value", 11, "uint64"), ("float_value", 12, "float"), ("double_value", 13, "double"),
        ("boolean_value", 14, "bool"), ("string_value", 15, "string"), ("bytes_value", 16, "bytes"),
    ):  # fmt: skip
        field = metric.field.add(name=name, number=number, type=types[kind], label=1)
        if number >= 10:
            field.oneof_index = 0
    for name, number, kind in (("timestamp", 1, "uint64"), ("seq", 3, "uint64"), ("uuid", 4, "string"),
                               ("body", 5, "bytes")):  # fmt: skip
        payload.field.add(name=name, number=number, type=types[kind], label=1)
    payload.field.add(name="metrics", number=2, type=11, label=3, type_name=".spb.Payload.Metric")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("spb.Payload"))


Payload = _message()


def _read(data: bytes) -> Any:
    message = Payload()
    message.ParseFromString(data)
    assert not message.FindInitializationErrors()
    return message


def _value(metric: Any) -> Any:
    if metric.is_null:
        return None
    field = metric.WhichOneof("value")
    value = getattr(metric, field)
    return value - 2**64 if field == "long_value" and value >= 2**63 else value


def _command(name: str = "Node Control/Rebirth", value: bool = True) -> bytes:
    message = Payload(timestamp=1)
    message.metrics.add(name=name, timestamp=1, datatype=BOOLEAN, boolean_value=value)
    return message.SerializeToString()


def _next(client: Peer, kind: str) -> Any:
    """The next message of this kind; others are passed over."""
    while True:
        message = client.receive()
        if message.topic.split("/")[2] == kind:
            assert not message.retain
            return _read(message.payload)


# The payload


@pytest.mark.parametrize(
    "value", [True, False, 0, 1, 127, 128, -1, 2**63 - 1, -(2**63), 0.0, -1.5, float("inf"), "", "größer", "x" * 5000]
)
def test_a_value_is_read_back_by_protobuf(value) -> None:
    data = encode([Metric(value, 1_700_000_000_000, "a/b", 300, datatype(value))], 2**41, 255)
    message = _read(data)
    (metric,) = message.metrics
    assert (message.timestamp, message.seq) == (2**41, 255)
    assert (metric.name, metric.alias, metric.timestamp) == ("a/b", 300, 1_700_000_000_000)
    assert metric.datatype == datatype(value)
    assert _value(metric) == value
    assert type(_value(metric)) is type(value)
    assert metric.WhichOneof("value") == {INT64: "long_value", DOUBLE: "double_value", BOOLEAN: "boolean_value",
                                          STRING: "string_value"}[metric.datatype]  # fmt: skip


def test_what_is_left_out_is_not_there() -> None:
    message = _read(encode([Metric(None, 7, alias=3)], 9, None))
    assert not message.HasField("seq")
    (metric,) = message.metrics
    assert metric.is_null
    assert not any(metric.HasField(field) for field in ("name", "datatype"))
    assert metric.WhichOneof("value") is None


def test_a_command_for_rebirth_is_known_among_others() -> None:
    assert wants(_command(), "Node Control/Rebirth")
    assert not wants(_command(value=False), "Node Control/Rebirth")
    assert not wants(_command("Node Control/Reboot"), "Node Control/Rebirth")
    assert not wants(b"", "Node Control/Rebirth")
    message = _read(_command("Node Control/Reboot"))
    message.metrics.add(name="x", float_value=1.5)
    message.metrics.add(name="Node Control/Rebirth", boolean_value=True)
    assert wants(message.SerializeToString(), "Node Control/Rebirth")


def test_commands_of_any_bytes_are_read_or_refused() -> None:
    import random

    rng = random.Random(5)
    whole = _command()
    for _ in range(20_000):
        data = bytearray(whole[: rng.randrange(len(whole) + 1)])
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            wants(bytes(data), "Node Control/Rebirth")
        except ValueError:
            pass
    with pytest.raises(ValueError, match="ten bytes"):
        wants(b"\xff" * 1000, "x")


def test_metrics_are_the_scalars_of_a_document() -> None:
    document = {
        "device": "a", "counters": {"received": 1, "big": 2**64}, "histograms_ns": {"digits": {"x": 1}}, "list": [1],
        "nothing": None, "drift": {"digits": {"psi": {"inputs": {"x": 0.5}}}}, "ok": True,
    }  # fmt: skip
    assert dict(flatten(document)) == {
        "device": "a", "counters/received": 1, "drift/digits/psi/inputs/x": 0.5, "ok": True
    }  # fmt: skip


# The session


def test_a_birth_tells_of_all_metrics_and_data_of_what_changed(agent, peer) -> None:
    client = peer(ALL, "predictions/#")
    agent(rest=ENABLED)
    birth = _next(client, "NBIRTH")
    assert birth.seq == 0
    named = {m.name: m for m in birth.metrics}
    assert len(named) == len(birth.metrics)
    assert (named["bdSeq"].datatype, _value(named["bdSeq"])) == (INT64, 0)
    rebirth = named["Node Control/Rebirth"]
    assert (rebirth.datatype, _value(rebirth), rebirth.HasField("alias")) == (BOOLEAN, False, False)
    assert _value(named["models/digits/backend"]) == "native"
    assert all(m.HasField("timestamp") and m.datatype for m in birth.metrics)
    aliases = {m.alias: m.name for m in birth.metrics if m.HasField("alias")}
    assert len(aliases) == len(birth.metrics) - 2
    client.send("cameras/1/frame", picture(0))
    seq, seen = 0, {}
    while "counters/answered" not in seen or "latency_us/digits/total/p99" not in aliases.values():
        message = client.receive()
        if message.topic == "spBv1.0/plant/NBIRTH/box1":  # the first answer brings metrics that were not there
            birth, seq = _read(message.payload), 0
            aliases = {m.alias: m.name for m in birth.metrics if m.HasField("alias")}
            seen |= {m.name: _value(m) for m in birth.metrics if _value(m) and m.name == "counters/answered"}
        elif message.topic == "spBv1.0/plant/NDATA/box1":
            data = _read(message.payload)
            seq += 1
            assert data.seq == seq
            assert all(m.HasField("alias") and not m.HasField("name") and m.HasField("timestamp")
                       for m in data.metrics)  # fmt: skip
            seen |= {aliases[m.alias]: _value(m) for m in data.metrics}
    assert seen["counters/answered"] == 1
    assert "device" not in seen  # it never changes


def test_a_host_may_ask_for_a_rebirth(agent, peer) -> None:
    client = peer(ALL)
    agent(rest=ENABLED)
    first = _next(client, "NBIRTH")
    _next(client, "NDATA")
    client.send("spBv1.0/plant/NCMD/box1", b"\xff\xff\xff", 0)  # no payload at all
    client.send("spBv1.0/plant/NCMD/box1", _command("Node Control/Reboot"), 0)
    client.send("spBv1.0/plant/NCMD/box1", _command(), 0)
    again = _next(client, "NBIRTH")
    assert again.seq == 0
    assert _value(again.metrics[0]) == _value(first.metrics[0])  # bdSeq is the connection's
    assert {m.name: m.alias for m in again.metrics} == {m.name: m.alias for m in first.metrics}
    assert _next(client, "NDATA").seq == 1


def test_a_killed_agent_dies_with_the_number_of_its_birth_and_the_next_has_one_more(agent, peer) -> None:
    client = peer(ALL)
    running = agent(rest=ENABLED)
    for number in range(3):
        birth = _next(client, "NBIRTH")
        assert _value(birth.metrics[0]) == number
        running.kill()
        death = _next(client, "NDEATH")
        assert not death.HasField("seq")
        (metric,) = death.metrics
        assert (metric.name, _value(metric)) == ("bdSeq", number)
        running.start()


def test_a_stop_is_a_death_too(agent, peer) -> None:
    client = peer(ALL)
    running = agent(rest=ENABLED)
    _next(client, "NBIRTH")
    assert running.terminate() == 0
    assert _value(_next(client, "NDEATH").metrics[0]) == 0
    with pytest.raises(queue.Empty):  # neither the will nor data after it
        client.receive(1)


def test_a_lost_broker_is_a_new_session_with_a_new_number(agent, peer, broker, stack) -> None:
    running = agent(rest=ENABLED)
    broker.kill()
    time.sleep(0.3)
    broker.start()
    client = Peer(broker.port, [ALL])
    stack.callback(client.close)
    client.send("spBv1.0/plant/NCMD/box1", _command(), 0)  # it may have been born before we listened
    number = _value(_next(client, "NBIRTH").metrics[0])
    assert number >= 1
    running.kill()
    assert _value(_next(client, "NDEATH").metrics[0]) == number  # the will is this connection's


class _Recorder:
    """In place of a session: what would be sent, and callbacks to be called."""

    connected = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def publish(self, message: Any, confirmed: Any = None) -> None:
        assert not message.retain
        self.sent.append((message.topic.split("/")[2], _read(message.payload)))


def _node(folder: Path) -> tuple[EdgeNode, _Recorder]:
    from agent.config import Broker

    node, recorder = EdgeNode(Broker(), "x", "plant", "box1", folder), _Recorder()
    node._session = recorder  # type: ignore[assignment]
    return node, recorder


def _update(node: EdgeNode, **values: Any) -> None:
    node.update(json.dumps(values).encode())


def test_numbers_wrap_after_255(tmp_path: Path) -> None:
    node, recorder = _node(tmp_path)
    _update(node, n=0)
    assert recorder.sent == []  # no data before a birth
    node._death()
    node._birth()
    for i in range(1, 300):
        _update(node, n=i)
    assert [m.seq for _, m in recorder.sent] == [i % 256 for i in range(300)]
    for _ in range(300):
        will = node._death()
    _update(node, n=-1)
    assert len(recorder.sent) == 300  # no data of this connection before its birth
    assert (will.qos, will.retain, will.topic) == (1, False, "spBv1.0/plant/NDEATH/box1")
    assert _value(_read(will.payload).metrics[0]) == 300 % 256
    assert (tmp_path / "sparkplug-bdseq").read_text() == f"{300 % 256}\n"
    restarted, _ = _node(tmp_path)
    assert _value(_read(restarted._death().payload).metrics[0]) == 301 % 256


def test_a_metric_that_is_new_or_of_another_type_takes_a_birth_and_one_that_is_gone_is_null(tmp_path: Path) -> None:
    node, recorder = _node(tmp_path)
    _update(node, a=1, b=0.5, c="x")
    node._death()
    node._birth()
    _update(node, a=1, b=0.5, c="x")  # nothing changed
    _update(node, a=2, b=1, c="x")  # a whole number stands for a double
    _update(node, a=2, b=1, c="x", d=True)
    _update(node, a=2.5, b=1, c="x", d=True)
    _update(node, a=2.5, b=1, d=True)
    kinds = [kind for kind, _ in recorder.sent]
    assert kinds == ["NBIRTH", "NDATA", "NBIRTH", "NBIRTH", "NDATA"]
    data = recorder.sent[1][1].metrics
    assert [(m.alias, m.WhichOneof("value"), _value(m)) for m in data] == [
        (1, "long_value", 2), (2, "double_value", 1.0)
    ]  # fmt: skip
    (gone,) = recorder.sent[4][1].metrics
    assert (gone.alias, gone.is_null) == (3, True)
    aliases = [{m.name: m.alias for m in m.metrics if m.HasField("alias")} for k, m in recorder.sent if k == "NBIRTH"]
    assert aliases[1] == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert aliases[2] == aliases[1]


def test_behind_an_acl_of_its_own_and_tls_nothing_is_missing(tmp_path: Path, pki: Path, stack) -> None:
    config = tmp_path / "acl.toml"
    config.write_text(f'device = "box1"\n[[model]]\nname = "digits"\npath = "{DIGITS}"\n'
                      f"{ENABLED}[home_assistant]\nenabled = true\n")  # fmt: skip
    assert main(["acl", str(config), "-o", str(tmp_path / "acl")]) == 0
    scada = "user watcher\ntopic read #\ntopic write spBv1.0/plant/NCMD/box1\n"
    broker = locked_broker(tmp_path / "broker", pki, acl=(tmp_path / "acl").read_text() + scada)
    stack.callback(broker.stop)
    files = {"ca": f"{pki}/ca.pem", "cert": f"{pki}/watcher.pem", "key": f"{pki}/watcher.key"}
    client = Peer(broker.port, [ALL, "homeassistant/#"], client_id="watcher-1", **files)
    stack.callback(client.close)
    running = Agent(tmp_path, broker.port, f"{ENABLED}[home_assistant]\nenabled = true\n", tls_toml(pki), wait=False)
    stack.callback(running.kill)
    running.wait_log("connected over MQTT 5")
    kinds = set()
    while len(kinds) < 3:
        kinds.add(client.receive().topic)
    assert kinds == {"homeassistant/device/int8d_box1/config", "spBv1.0/plant/NBIRTH/box1", "spBv1.0/plant/NDATA/box1"}
    client.send("spBv1.0/plant/NCMD/box1", _command(), 0)
    assert _next(client, "NBIRTH").seq == 0
    running.kill()
    assert _next(client, "NDEATH")
