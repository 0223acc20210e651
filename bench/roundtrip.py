"""What the agent costs on top of the broker: a message there and back, beside a bare echo through the same mosquitto.

    python -m bench.roundtrip [--messages 500] [--json]

In turn, one message each: to the agent with the digits model (a picture in, a prediction out), and to a process of a
few lines of paho that sends back what it gets. Same client, same payload, QoS 1, one at a time, warm. Also: how soon
after its start the agent is ready, and its memory.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bench.table import paragraph, table
from tests.agent_process import Agent, picture
from tests.broker import Mosquitto

ECHO, AGENT, REPLY = "echo", "int8d/box1/v2/models/digits/infer", "bench/reply"


def connect(port: int) -> paho.Client:
    """A plain client; TCP_NODELAY as the agent sets it, so that both sides are alike."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_socket_open = lambda c, u, s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect("127.0.0.1", port)
    return client


def echo(port: int) -> None:
    """The bare echo, as a process: subscribe, send back, acknowledge."""
    client = connect(port)
    client.on_message = lambda c, u, m: c.publish(m.properties.ResponseTopic, m.payload, 1)
    client.on_connect = lambda c, *a: c.subscribe(ECHO, 1)
    client.loop_forever()


def measure(messages: int) -> dict[str, Any]:
    """Microseconds of both, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "broker").mkdir()
        broker = Mosquitto(folder / "broker")
        agent = Agent(folder, broker.port)
        echoing = subprocess.Popen([sys.executable, "-m", "bench.roundtrip", "--echo", str(broker.port)])
        try:
            return {"ready_s": agent.ready_s} | _rounds(broker.port, messages) | {"resident_mb": agent.resident_mb()}
        finally:
            echoing.kill()
            agent.terminate()
            broker.stop()


def _rounds(port: int, messages: int) -> dict[str, Any]:
    replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    subscribed: queue.SimpleQueue[int] = queue.SimpleQueue()
    client = connect(port)
    client.on_message = lambda c, u, m: replies.put(m.payload)
    client.on_subscribe = lambda *a: subscribed.put(1)
    client.on_connect = lambda c, *a: c.subscribe(REPLY, 1)
    client.loop_start()
    subscribed.get(timeout=10)
    times: dict[str, list[int]] = {ECHO: [], AGENT: []}
    inside: list[int] = []
    warm = 50
    for i in range(messages + warm):
        payload = picture(i % 40)
        for topic, collected in times.items():
            properties = Properties(PacketTypes.PUBLISH)
            properties.ResponseTopic = REPLY
            properties.CorrelationData = str(i).encode()
            reply = None
            while reply is None:  # the echo may not have subscribed yet
                start = time.perf_counter_ns()
                client.publish(topic, payload, 1, properties=properties)
                try:
                    reply = replies.get(timeout=2)
                except queue.Empty:
                    continue
            if i >= warm:
                collected.append((time.perf_counter_ns() - start) // 1000)
                if topic == AGENT:
                    inside.append(json.loads(reply)["parameters"]["compute_infer_us"])
    client.disconnect()
    client.loop_stop()
    result: dict[str, Any] = {"messages": messages, "p50_kernel_us": sorted(inside)[messages // 2]}
    for topic, name in ((ECHO, "echo"), (AGENT, "agent")):
        collected = sorted(times[topic])
        result[name] = {"p50_us": collected[messages // 2], "p99_us": collected[messages * 99 // 100]}
    result["ratio_p50"] = round(result["agent"]["p50_us"] / result["echo"]["p50_us"], 2)
    return result


def report(r: dict[str, Any]) -> Iterator[str]:
    """The section of docs/performance.md."""
    yield from ("", "## A message there and back")
    yield from paragraph(
        "`python -m bench.roundtrip --messages 1000`: one message at a time through mosquitto on loopback, QoS 1, MQTT",
        "5; the agent decodes a PNG, runs the digits model and replies; the echo is a bare paho process. Interleaved,",
        "microseconds.",
    )
    yield ""
    yield from table(["", "p50", "p99"], [["bare echo", r["echo"]["p50_us"], r["echo"]["p99_us"]],
                                          ["int8d", r["agent"]["p50_us"], r["agent"]["p99_us"]]])  # fmt: skip
    yield from paragraph(
        f"Ratio of the medians {r['ratio_p50']}; the kernels take {r['p50_kernel_us']} us of it. The daemon was ready",
        f"{r['ready_s']:.2f} s after its start and held {r['resident_mb']:.0f} MB.",
    )


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--echo", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.echo:
        echo(args.echo)
        return
    result = measure(args.messages)
    if args.json:
        print(json.dumps(result))
        return
    for name in ("echo", "agent"):
        print(f"{name:6} p50 {result[name]['p50_us']:6} us   p99 {result[name]['p99_us']:6} us")
    print(f"ratio of the medians: {result['ratio_p50']} (kernels: {result['p50_kernel_us']} us of it)")
    print(f"ready after {result['ready_s']:.2f} s, {result['resident_mb']:.1f} MB resident")


if __name__ == "__main__":
    main()
