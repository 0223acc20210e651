"""A stand-in for the agent: answers requests as a test says, and writes down what came."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import paho.mqtt.client as paho

from tests.agent_process import Peer

REPLY = b'{"model_name": "m", "outputs": []}'


def refusal(code: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": "planted"}}).encode()


class Responder(Peer):
    """answer(payload, n) gives the reply to the n-th copy (from 0) of a message, or None for silence."""

    def __init__(self, port: int, answer: Callable[[bytes, int], bytes | None] = lambda payload, n: REPLY) -> None:
        self.answer = answer
        self.copies: dict[str, list[paho.MQTTMessage]] = {}
        self.lock = threading.Lock()
        models = "int8d/box1/v2/models/+/infer"
        super().__init__(port, [models, f"{models}/request/#"])
        self.client.on_message = lambda client, userdata, message: self._take(message)

    def _take(self, message: paho.MQTTMessage) -> None:
        properties = message.properties
        correlation = getattr(properties, "CorrelationData", None)
        name = correlation.decode() if correlation else message.topic.rsplit("/", 1)[1]
        with self.lock:
            copies = self.copies.setdefault(name, [])
            copies.append(message)
        reply = self.answer(bytes(message.payload), len(copies) - 1)
        if reply is not None:
            self.reply_to(message, reply)

    def reply_to(self, message: paho.MQTTMessage, reply: bytes) -> None:
        bag = message.properties
        if getattr(bag, "CorrelationData", None):
            from paho.mqtt.packettypes import PacketTypes
            from paho.mqtt.properties import Properties

            out = Properties(PacketTypes.PUBLISH)
            out.CorrelationData = bag.CorrelationData
            self.client.publish(bag.ResponseTopic, reply, 1, properties=out)
        else:
            self.client.publish(message.topic.replace("/infer/request/", "/infer/response/"), reply, 1)

    def came(self, name: str) -> int:
        with self.lock:
            return len(self.copies.get(name, ()))
