"""``int8d demo``: the whole product on one box: an embedded broker, the agent as a process, 40 pictures."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from agent.errors import Int8dError
from agent.telemetry.histogram import Histogram

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
DEVICE = "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--zoo", type=Path, help="folder with digits.int8.safetensors and digits/ (default: installed)")


def run(args: argparse.Namespace) -> int:
    from agent.client import Client
    from agent.config import Broker
    from agent.mqtt.embedded import EmbeddedBroker

    zoo = args.zoo or _installed_zoo()
    try:
        truth: dict[str, int] = json.loads((zoo / "digits" / "labels.json").read_text())
    except (OSError, ValueError) as e:
        raise Int8dError(f"{zoo} is not the demo's folder, with digits/labels.json ({e})") from e
    with ExitStack() as stack:
        broker = EmbeddedBroker()
        stack.callback(broker.stop)
        _say(args, f"amqtt, an embedded broker for the demo (MQTT 3.1.1, keeps nothing), on port {broker.port}")
        settings = Broker(port=broker.port, protocol="3.1.1", reconnect_min_s=0.1)
        observer = stack.enter_context(_observer(settings))
        stack.enter_context(_agent(broker.port, zoo / "digits.int8.safetensors"))
        observer.wait_online()
        client = stack.enter_context(Client(settings, DEVICE))
        client.wait_connected(10)
        result = _send_all(args, client, zoo / "digits", truth)
        result["broker"] = f"amqtt {importlib.metadata.version('amqtt')}"
        stats = observer.stats_after_work()
        result["isa"] = stats["models"]["digits"]["isa"]
        result["torch_imported"] = stats["torch_imported"]
    if args.json:
        print(json.dumps(result))
    else:
        _print_summary(result)
    return 0 if result["answered"] == result["sent"] else 1


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text, flush=True)


def _installed_zoo() -> Path:
    spec = importlib.util.find_spec("models")
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (Path(folder) / "zoo" / "digits.int8.safetensors").is_file():
            return Path(folder) / "zoo"
    raise Int8dError("the demo's model is not installed; name its folder with --zoo (models/zoo of the source)")


@contextmanager
def _agent(port: int, model: Path) -> Iterator[None]:
    """The daemon as a process, as a user would start it."""
    text = f"""
device = "{DEVICE}"
stats_interval_s = 0.5
[broker]
port = {port}
protocol = "3.1.1"
reconnect_min_s = 0.1
[[model]]
name = "digits"
path = {json.dumps(str(model))}
"""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "int8d.toml"
        config.write_text(text)
        with open(Path(folder) / "log", "w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "agent.cli", "run", "--config", str(config)], stdout=output, stderr=output
            )
            try:
                yield
            finally:
                process.terminate()
                try:
                    status = process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    status = process.wait()
                if status != 0:
                    output.seek(0)
                    print(output.read()[-2000:], file=sys.stderr)


def _send_all(args: argparse.Namespace, client: Any, folder: Path, truth: dict[str, int]) -> dict[str, Any]:
    from agent.client import Refused

    latencies = {stage: Histogram() for stage in (*STAGES, "total")}
    answered = correct = 0
    header = f"{'picture':10}{'prediction':>11}{'truth':>7}" + "".join(f"{s:>16}" for s in (*STAGES, "there and back"))
    _say(args, header + "   [us]")
    for name, label in sorted(truth.items()):
        payload = (folder / name).read_bytes()
        try:
            reply = client.infer("digits", payload, "image/png", timeout=20)
        except Refused as e:
            _say(args, f"{name:10}{e.message}")
            continue
        document = reply.document
        answered += 1
        prediction = document["classes"][0]["label"]
        correct += prediction == str(label)
        times = [int(document["parameters"][f"{stage}_us"]) for stage in STAGES] + [reply.round_trip_ns // 1000]
        for histogram, us in zip(latencies.values(), times, strict=True):
            histogram.add(us)
        mark = " " if prediction == str(label) else "*"
        _say(args, f"{name:10}{prediction:>10}{mark}{label:>7}" + "".join(f"{us:>16}" for us in times))
    return {
        "sent": len(truth),
        "answered": answered,
        "correct": correct,
        "latency_us": {s: {p: h.percentile(float(p[1:])) for p in ("p50", "p99")} for s, h in latencies.items()},
    }


@contextmanager
def _observer(settings: Any) -> Iterator[_Observer]:
    """Listens to the daemon's retained topics."""
    from agent.mqtt.messages import Incoming
    from agent.mqtt.session import Session

    observer = _Observer()

    def receive(message: Incoming) -> None:
        observer.update(message.topic, message.payload)
        session.done(message)

    topics = [(f"int8d/{DEVICE}/available", 1), (f"int8d/{DEVICE}/stats", 0)]
    session = Session(settings, "int8d-demo-observer", topics, receive, clean=True)
    session.start()
    try:
        yield observer
    finally:
        session.stop()


class _Observer:
    """What the daemon says of itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._online = False
        self._stats: dict[str, Any] = {"counters": {"answered": 0}}

    def update(self, topic: str, payload: bytes) -> None:
        with self._changed:
            if topic.endswith("/available"):
                self._online = payload == b"online"
            else:
                self._stats = json.loads(payload)
            self._changed.notify_all()

    def wait_online(self) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._online, 15):
                raise Int8dError("the agent did not come online within 15 s")

    def stats_after_work(self) -> dict[str, Any]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._stats["counters"]["answered"] > 0, 10):
                raise Int8dError("the agent published no statistics within 10 s")
            return self._stats


def _print_summary(result: dict[str, Any]) -> None:
    print(f"\n{result['answered']} of {result['sent']} answered, {result['correct']} correct "
          f"({100 * result['correct'] / max(1, result['answered']):.1f} %)")  # fmt: skip
    for stage, p in result["latency_us"].items():
        name = "there and back" if stage == "total" else stage
        print(f"  {name:15} p50 {p['p50']:>7} us   p99 {p['p99']:>7} us")
    print(f"kernels: {result['isa']}; broker: {result['broker']}; torch imported: {result['torch_imported']}")
