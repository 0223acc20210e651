"""Bad input is answered with a clear error, and the daemon goes on; bad configuration ends it with status 78."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.agent_process import DIGITS, ROOT, Agent, picture, truth

INFER = "int8d/box1/v2/models/digits/infer"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png(width: int = 30_000, height: int = 30_000) -> bytes:
    """A few bytes that claim to be 900 million pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND", b"")


def _request(**changes: object) -> bytes:
    tensor = {"name": "x", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [0] * 64} | changes
    return json.dumps({"id": "7", "inputs": [{k: v for k, v in tensor.items() if v is not None}]}).encode()


BAD = {
    "truncated picture": (picture(0)[:60], None, "picture"),
    "no picture": (b"\x89PNG\r\n\x1a\nnonsense", None, "picture"),
    "30,000 x 30,000 pixels": (huge_png(), None, "30000x30000"),
    "oversized": (b"\0" * 70_000, None, "at most 65536"),
    "raw of the wrong size": (b"\0" * 63, None, "64 bytes"),
    "empty": (b"", None, "64 bytes"),
    "unknown content type": (picture(0), "video/mp4", "content type"),
    "invalid JSON": (b'{"inputs": [', None, "Open Inference Protocol"),
    "JSON of another kind": (b'{"a": 1}', None, "inputs"),
    "no inputs": (b'{"inputs": []}', None, "no inputs"),
    "deep JSON": (b'{"inputs":' + b"[" * 30_000, None, "Open Inference Protocol"),
    "wrong shape": (_request(shape=[1, 4, 16, 1]), None, "shape"),
    "wrong name": (_request(name="y"), None, "no input 'y'"),
    "wrong datatype": (_request(datatype="BYTES"), None, "datatype"),
    "too few elements": (_request(data=[1, 2]), None, "shape"),
    "value out of range": (_request(data=[300] * 64), None, "UINT8"),
    "text for numbers": (_request(data=["1"] * 64), None, "numbers"),
    "huge shape": (_request(shape=[2**31 - 1] * 8), None, "shape"),
    "negative shape": (_request(shape=[-1, 8, 8, 1]), None, "shape"),
    "no data": (_request(data=None), None, "shape"),
    "damaged .npy": (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'}", None, ".npy"),
    ".npy that asks for 80 GB": (
        b"\x93NUMPY\x01\x00\x50\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (20000000000,)}".ljust(80),
        None,
        ".npy",
    ),
    ".npy of objects": (
        b"\x93NUMPY\x01\x00\x50\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}".ljust(80),
        None,
        "dtype",
    ),
}


def test_every_bad_payload_gets_a_clear_error_and_the_daemon_goes_on(agent, peer) -> None:
    running = agent(top="[limits]\nmax_payload_bytes = 65536\n")
    client = peer("replies")
    for name, (payload, content_type, expected) in BAD.items():
        more = {"ContentType": content_type} if content_type else {}
        client.send(INFER, payload, ResponseTopic="replies", CorrelationData=name.encode(), **more)
        message = client.receive()
        error = json.loads(message.payload)["error"]
        assert message.properties.CorrelationData == name.encode(), name
        assert error["code"] == "invalid_input", (name, error)
        assert expected in error["message"], (name, error)
    client.send(INFER, picture(0), ResponseTopic="replies")
    assert client.reply()["classes"][0]["label"] == truth()[0]
    assert running.process.poll() is None
    assert running.resident_mb() < 100


def test_an_unknown_model_is_named(agent, peer) -> None:
    agent()
    client = peer("int8d/box1/v2/models/nothing/infer/response")
    client.send("int8d/box1/v2/models/nothing/infer", picture(0))
    error = client.reply()["error"]
    assert error["code"] == "unknown_model"
    assert "digits" in error["message"]


def test_the_id_of_a_refused_request_comes_back(agent, peer) -> None:
    agent()
    client = peer(f"{INFER}/response")
    client.send(INFER, _request(name="y"))
    assert client.reply()["id"] == "7"


SMALL = f'device = "a"\n[[model]]\nname = "m"\npath = "{DIGITS}"\n'
CONFIGS = {
    "an unknown key": (SMALL + "colour = 1\n", "colour"),
    "an unknown table": ("[brocker]\n" + SMALL, "brocker"),
    "a wrong type": (SMALL + 'threads = "two"\n', "threads"),
    "no model": ('device = "a"\n', "model"),
    "no device": (SMALL.replace('device = "a"\n', ""), "device"),
    "not TOML": ("device = = 1", "TOML"),
    "a bad filter": (SMALL + '[[route]]\nsubscribe = "a/b+"\nmodel = "m"\npublish = "x"\n', "a/b+"),
    "a wildcard too many": (SMALL + '[[route]]\nsubscribe = "a/+"\nmodel = "m"\npublish = "x/{2}"\n', "{2}"),
    "a route to nowhere": (SMALL + '[[route]]\nsubscribe = "a"\nmodel = "other"\npublish = "x"\n', "other"),
    "a missing model file": (SMALL.replace(str(DIGITS), "/nowhere.safetensors"), "/nowhere.safetensors"),
    "a missing certificate": (SMALL + '[broker.tls]\nca = "/nowhere.pem"\n', "/nowhere.pem"),
    "a bad port": (SMALL + "[broker]\nport = 70000\n", "port"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configuration_ends_with_78_and_names_what_is_wrong(tmp_path: Path, case: str) -> None:
    text, expected = CONFIGS[case]
    (tmp_path / "int8d.toml").write_text(text)
    _ends_with_78(tmp_path / "int8d.toml", expected)


def test_a_missing_config_ends_with_78(tmp_path: Path) -> None:
    _ends_with_78(tmp_path / "none.toml", "none.toml")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_model_ends_with_78(tmp_path: Path, damage: str) -> None:
    data = bytearray(DIGITS.read_bytes())
    if damage == "flipped":
        data[200] ^= 0xFF
    data = {"truncated": data[:5000], "flipped": data, "empty": bytearray(), "text": bytearray(b"hello" * 100)}[damage]
    (tmp_path / "m.safetensors").write_bytes(data)
    (tmp_path / "int8d.toml").write_text(SMALL.replace(str(DIGITS), str(tmp_path / "m.safetensors")))
    _ends_with_78(tmp_path / "int8d.toml", "m.safetensors")


def _ends_with_78(config: Path, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", "run", "--config", str(config)], capture_output=True, timeout=30, cwd=ROOT
    )
    assert done.returncode == 78
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in done.stdout.decode()


def test_a_reply_topic_that_no_one_may_publish_to_falls_back_to_the_route(agent: type[Agent], peer) -> None:
    agent()
    client = peer("predictions/#")
    # mosquitto itself refuses wildcards in a Response Topic, so a $-topic stands for the rest
    client.send("cameras/4/frame", picture(0), ResponseTopic="$SYS/broker/x")
    assert client.receive().topic == "predictions/4"
