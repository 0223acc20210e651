"""What the agent costs on top of the broker, and how much gets through it: beside a bare echo, and beside a script.

    python -m bench.roundtrip [--messages 2000] [--rounds 10] [--json]

Through one mosquitto on loopback, QoS 1, MQTT 5, warm, with the digits model: the agent; a bare echo (paho); and the
30 lines of paho and ONNX Runtime that one would write instead (``bench.contenders``). Latency: one message each in
turn. The agent's overhead is its round trip less its kernel time less the median of the echo. Throughput: in turns of
a second, 32 messages under way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.table import paragraph, table
from tests.agent_process import DIGITS, Agent, picture
from tests.broker import Mosquitto
from tests.fire.wire import CORRELATION, Properties, Wire, properties

TOPICS = {"bare echo": b"echo", "int8d": b"int8d/box1/v2/models/digits/infer", "paho + ONNX Runtime": b"script"}
# Saved every minute: with autosave_on_changes mosquitto writes all it holds for every message, and is the bottleneck.
BROKER = "autosave_on_changes false\nautosave_interval 60"
_WINDOW = 32
_WARM = 200


class Sender:
    """Sends, and waits for replies; one connection."""

    def __init__(self, port: int) -> None:
        self._replies: list[tuple[int, bytes]] = []
        self._wire = Wire(port, "bench", [b"bench/reply"], self._take)
        self._next = 0

    def _take(self, topic: bytes, payload: bytes, found: Properties) -> None:
        self._replies.append((int(found[CORRELATION][0]), payload))

    def _send(self, topic: bytes, payload: bytes) -> None:
        self._next += 1
        self._wire.publish(topic, payload, properties(b"bench/reply", b"%d" % self._next))

    def once(self, topic: bytes, payload: bytes, timeout: float = 5) -> tuple[int, bytes]:
        """Microseconds there and back, and the reply."""
        start = time.perf_counter_ns()
        until = time.monotonic() + timeout
        self._send(topic, payload)
        while True:
            self._wire.pump(0.5)
            for number, reply in self._replies:
                if number == self._next:
                    self._replies.clear()
                    return (time.perf_counter_ns() - start) // 1000, reply
            self._replies.clear()
            if time.monotonic() > until:
                raise TimeoutError(topic.decode())

    def flood(self, topic: bytes, payload: Callable[[int], bytes], seconds: float) -> float:
        """Messages a second, with always as many under way."""
        start = time.perf_counter()
        for i in range(_WINDOW):
            self._send(topic, payload(i))
        answered = 0
        while True:
            self._wire.pump(0.5)
            answered += len(self._replies)
            took = time.perf_counter() - start
            sending = took < seconds
            if sending:
                for i in range(len(self._replies)):
                    self._send(topic, payload(i))
            elif answered:
                rate = answered / took
                break
            self._replies.clear()
        waiting = _WINDOW - len(self._replies)
        self._replies.clear()
        while waiting > 0:
            assert self._wire.pump(5), f"{waiting} messages are not answered"
            waiting -= len(self._replies)
            self._replies.clear()
        return rate


def measure(messages: int, rounds: int) -> dict[str, Any]:
    """Latencies in microseconds, rates in messages a second, of a raw tensor and of a PNG picture."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "broker").mkdir()
        broker = Mosquitto(folder / "broker", BROKER)
        stack.callback(broker.stop)
        agent = Agent(folder, broker.port)
        stack.callback(agent.terminate)
        for arguments in (["echo", str(broker.port)], ["script", str(broker.port), *_onnx(folder)]):
            process = subprocess.Popen([sys.executable, "-m", "bench.contenders", *arguments])
            stack.callback(process.kill)
        sender = Sender(broker.port)
        for topic in TOPICS.values():
            _until_it_answers(sender, topic)
        raw = np.arange(64, dtype=np.uint8).tobytes()
        kinds: dict[str, Callable[[int], bytes]] = {"raw tensor": lambda i: raw, "PNG": lambda i: picture(i % 40)}
        result: dict[str, Any] = {"ready_s": agent.ready_s, "kinds": {}}
        for kind, payload in kinds.items():
            result["kinds"][kind] = _latency(sender, payload, messages) | _throughput(sender, payload, rounds)
        return result | {"resident_mb": agent.resident_mb()}


def _onnx(folder: Path) -> tuple[str, str]:
    """The digits model as ONNX, in the quantized form that ONNX Runtime is made for, and its labels."""
    from agent.modelfile import read
    from agent.peers.qdq import to_onnx

    model = read(DIGITS)
    path = folder / "digits.onnx"
    path.write_bytes(to_onnx(model).SerializeToString())
    return str(path), ",".join(model.header.labels)


def _until_it_answers(sender: Sender, topic: bytes) -> None:
    for _ in range(40):
        try:
            sender.once(topic, picture(0), 0.5)
            return
        except TimeoutError:
            continue
    raise TimeoutError(f"{topic.decode()} does not answer")


def _latency(sender: Sender, payload: Callable[[int], bytes], messages: int) -> dict[str, Any]:
    times: dict[str, list[int]] = {name: [] for name in TOPICS}
    inside: list[int] = []
    for i in range(messages + _WARM):
        for name, topic in TOPICS.items():
            took, reply = sender.once(topic, payload(i))
            if i >= _WARM:
                times[name].append(took)
                if name == "int8d":
                    inside.append(json.loads(reply)["parameters"]["compute_infer_us"])
    echo = median(times["bare echo"])
    overhead = [took - kernel - echo for took, kernel in zip(times["int8d"], inside, strict=True)]
    return {
        "latency_us": {name: {"p50": _percentile(t, 50), "p99": _percentile(t, 99)} for name, t in times.items()},
        "kernel_us": median(inside),
        "overhead_us": {"p50": _percentile(overhead, 50), "p99": _percentile(overhead, 99)},
    }


def _throughput(sender: Sender, payload: Callable[[int], bytes], rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in TOPICS}
    for i in range(rounds + 1):
        for name, topic in TOPICS.items():
            rate = sender.flood(topic, payload, 1.0)
            if i:
                rates[name].append(rate)
    ratios = [agent / echo for agent, echo in zip(rates["int8d"], rates["bare echo"], strict=True)]
    return {"per_second": {name: median(r) for name, r in rates.items()}, "ratio": median(ratios)}


def _percentile(values: list[int] | list[float], p: int) -> float:
    return sorted(values)[len(values) * p // 100]


def report(r: dict[str, Any]) -> Iterator[str]:
    """The section of docs/performance.md."""
    yield from ("", "## A message there and back")
    yield from paragraph(
        "`python -m bench.roundtrip`: through one mosquitto on loopback, QoS 1, MQTT 5, with the digits model. *Bare",
        "echo*: a process of a few lines of paho that sends back what it gets. *paho + ONNX Runtime*: the 30 lines",
        "that one would write instead of an agent ([`bench/contenders.py`](../bench/contenders.py)), on the same",
        "quantized network. Latency: one message each in turn, microseconds. Throughput: in turns of a second, 32",
        "messages under way. *Overhead*: round trip less kernel time less the echo's median; 250 and 1000 us are the",
        "most it may be, and 80 % of the echo's messages the least that must get through.",
    )
    for kind, k in r["kinds"].items():
        yield ""
        rows = [
            [name, round(k["latency_us"][name]["p50"]), round(k["latency_us"][name]["p99"]),
             round(k["per_second"][name])]
            for name in TOPICS
        ]  # fmt: skip
        yield from table([kind, "p50", "p99", "messages/s"], rows)
        yield from paragraph(
            f"Overhead {k['overhead_us']['p50']:.0f} us (p50), {k['overhead_us']['p99']:.0f} us (p99); the kernels",
            f"take {k['kernel_us']:.0f} us. Throughput {100 * k['ratio']:.0f} % of the echo's.",
        )
    yield from paragraph(
        f"The daemon was ready {r['ready_s']:.2f} s after its start and held {r['resident_mb']:.0f} MB at the end."
    )


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args.messages, args.rounds)
    print(json.dumps(result) if args.json else "\n".join(report(result)))


if __name__ == "__main__":
    main()
