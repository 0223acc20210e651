"""What the agent is measured against, a process each: a bare echo, and what one would write in an afternoon.

    python -m bench.contenders echo PORT
    python -m bench.contenders script PORT MODEL.onnx LABELS

Both take the topic of their own name, and answer as the agent does: to the Response Topic, with the Correlation Data,
at QoS 1.
"""

from __future__ import annotations

import io
import json
import socket
import sys
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def serve(port: int, topic: str, handle: Any) -> None:
    """paho in one thread; TCP_NODELAY, without which a round trip takes 44 ms."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_socket_open = lambda c, u, s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer(c: paho.Client, u: Any, message: paho.MQTTMessage) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = message.properties.CorrelationData
        c.publish(message.properties.ResponseTopic, handle(message.payload), 1, properties=properties)

    client.on_message = answer
    client.on_connect = lambda c, *a: c.subscribe(topic, 1)
    client.max_queued_messages_set(0)
    client.connect("127.0.0.1", port)
    client.loop_forever()


def script(port: int, model: str, labels: str) -> None:
    """paho and ONNX Runtime: 30 lines, no deadlines, no ledger, nothing kept when it dies."""
    import numpy as np
    import onnxruntime as ort
    from PIL import Image

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (info,) = session.get_inputs()
    names = labels.split(",")

    def handle(payload: bytes) -> bytes:
        if payload.startswith(b"\x89PNG"):
            pixels = np.asarray(Image.open(io.BytesIO(payload)).convert("L"), np.uint8)
        else:
            pixels = np.frombuffer(payload, np.uint8)
        (logits,) = session.run(None, {info.name: pixels.reshape(info.shape)})
        scores = np.exp(logits[0] - logits[0].max())
        scores /= scores.sum()
        top = np.argsort(-scores)[:5]
        classes = [{"label": names[i], "index": int(i), "probability": float(scores[i])} for i in top]
        return json.dumps({"outputs": [{"data": logits[0].tolist()}], "classes": classes}).encode()

    serve(port, "script", handle)


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        serve(int(sys.argv[2]), "echo", lambda payload: payload)
    else:
        script(int(sys.argv[2]), sys.argv[3], sys.argv[4])
