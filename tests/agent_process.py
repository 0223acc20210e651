"""The daemon as a process, and a plain paho client beside it that knows nothing of the agent's code."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "models" / "zoo" / "digits.int8.safetensors"
PICTURES = ROOT / "models" / "zoo" / "digits"

ROUTE = '[[route]]\nsubscribe = "cameras/+/frame"\nmodel = "digits"\npublish = "predictions/{1}"\n'


class Agent:
    """``int8d run`` with a config of ``top``, ``[broker]`` lines, the digits model, and ``rest``."""

    module = "agent.cli"

    def __init__(self, folder: Path, port: int, rest: str = ROUTE, broker: str = "", top: str = "", wait: bool = True,
                 model: Path = DIGITS, environment: dict[str, str] | None = None,
                 stats_s: float = 0.2) -> None:  # fmt: skip
        self.config = folder / "int8d.toml"
        self.config.write_text(
            f'device = "box1"\nstats_interval_s = {stats_s}\nstate_folder = "{folder}/state"\n{top}\n'
            f"[broker]\nport = {port}\nreconnect_min_s = 0.05\n"
            f'reconnect_max_s = 0.2\n{broker}\n[[model]]\nname = "digits"\npath = "{model}"\n{rest}'
        )
        self._log = folder / "agent.log"
        self._environment = environment or {}
        self.process: subprocess.Popen[bytes]
        self.start(wait)

    def start(self, wait: bool = True) -> None:
        self.started = time.monotonic()
        with open(self._log, "ab") as log:
            self._size = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | self._environment,
            )
        if wait:
            self.wait_log("connected over MQTT")
        self.ready_s = time.monotonic() - self.started

    def log(self) -> str:
        """What this process has logged."""
        return self._log.read_bytes()[self._size :].decode()

    def wait_log(self, text: str, timeout: float = 20) -> None:
        until = time.monotonic() + timeout
        while text not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, f"no '{text}' in the log: {self.log()}"
            time.sleep(0.01)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def resident_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")


class Peer:
    """A client of another make: subscribes, publishes, and collects what comes."""

    def __init__(self, port: int, topics: list[str], v5: bool = True, client_id: str = "", **tls: str) -> None:
        self.v5 = v5
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311,
        )
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        subscribed: queue.Queue[int] = queue.Queue()
        self.client.on_message = lambda c, u, m: self.messages.put(m)
        self.client.on_subscribe = lambda *a: subscribed.put(1)
        if tls:
            if "username" in tls:
                self.client.username_pw_set(tls["username"], tls["password"])
            if "ca" in tls:
                self.client.tls_set(tls["ca"], tls.get("cert"), tls.get("key"))
        self.client.on_connect = lambda c, *a: c.subscribe([(t, 1) for t in topics])
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        subscribed.get(timeout=10)

    def send(self, topic: str, payload: bytes, qos: int = 1, **properties: object) -> None:
        """properties: ResponseTopic, CorrelationData, ContentType, UserProperty, MessageExpiryInterval."""
        bag = None
        if properties:
            bag = Properties(PacketTypes.PUBLISH)
            for name, value in properties.items():
                setattr(bag, name, value)
        self.client.publish(topic, payload, qos, properties=bag).wait_for_publish(10)

    def receive(self, timeout: float = 10) -> paho.MQTTMessage:
        return self.messages.get(timeout=timeout)

    def reply(self, timeout: float = 10) -> dict:
        return json.loads(self.receive(timeout).payload)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def picture(index: int) -> bytes:
    return (PICTURES / f"{index:02d}.png").read_bytes()


def truth() -> list[str]:
    labels = json.loads((PICTURES / "labels.json").read_text())
    return [str(labels[name]) for name in sorted(labels)]
