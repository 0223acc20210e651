"""Encryption end to end: the RFC's vectors, every change refused, and a broker that learns nothing."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.client import Client, Refused
from agent.config import Broker
from agent.errors import ConfigError
from agent.wire import keys
from agent.wire.hpke import OpenError, PrivateKey, open_, seal
from agent.wire.sealed import Receiver, SealError, Sender
from tests.agent_process import PICTURES, ROOT, ROUTE, Agent, picture, truth

# RFC 9180, appendix A.2.3: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, mode Auth, sequence number 0.
VECTOR = {
    "info": "4f6465206f6e2061204772656369616e2055726e",
    "receiver": "3ca22a6d1cda1bb9480949ec5329d3bf0b080ca4c45879c95eddb55c70b80b82",
    "receiver_public": "1a478716d63cb2e16786ee93004486dc151e988b34b475043d3e0175bdb01c44",
    "sender": "2def0cb58ffcf83d1062dd085c8aceca7f4c0c3fd05912d847b61f3e54121f05",
    "sender_public": "f0f4f9e96c54aeed3f323de8534fffd7e0577e4ce269896716bcb95643c8712b",
    "ephemeral": "c94619e1af28971c8fa7957192b7e62a71ca2dcdde0a7cc4a8a9e741d600ab13",
    "enc": "f7674cc8cd7baa5872d1f33dbaffe3314239f6197ddf5ded1746760bfc847e0e",
    "aad": "436f756e742d30",
    "plaintext": "4265617574792069732074727574682c20747275746820626561757479",
    "ciphertext": "ab1a13c9d4f01a87ec3440dbd756e2677bd2ecf9df0ce7ed73869b98e00c09be111cb9fdf077347aeb88e61bdf",
}
TOPIC = "int8d/box1/v2/models/digits/infer"


def _key(private: str) -> PrivateKey:
    return PrivateKey(X25519PrivateKey.from_private_bytes(bytes.fromhex(private)))


def _vector(name: str) -> bytes:
    return bytes.fromhex(VECTOR[name])


def test_the_rfcs_ciphertext_opens() -> None:
    receiver = _key(VECTOR["receiver"])
    assert receiver.public == _vector("receiver_public")
    plain = open_(_vector("enc"), _vector("ciphertext"), receiver, _vector("sender_public"), _vector("info"),
                  _vector("aad"))  # fmt: skip
    assert plain == _vector("plaintext")


def test_sealing_gives_the_rfcs_ciphertext(monkeypatch) -> None:
    monkeypatch.setattr(PrivateKey, "generate", lambda: _key(VECTOR["ephemeral"]))
    sealed = seal(_vector("plaintext"), _key(VECTOR["sender"]), _vector("receiver_public"), _vector("info"),
                  _vector("aad"))  # fmt: skip
    assert sealed == (_vector("enc"), _vector("ciphertext"))


@pytest.mark.parametrize("bad", [bytes(32), b"\x01" + bytes(31), bytes(31)])
def test_a_public_key_that_gives_the_secret_away_is_refused(bad: bytes) -> None:
    box, camera = PrivateKey.generate(), PrivateKey.generate()
    enc, ciphertext = seal(b"x", camera, box.public, b"")
    with pytest.raises(OpenError):
        open_(bad, ciphertext, box, camera.public, b"")
    with pytest.raises(OpenError):
        open_(enc, ciphertext, box, bad, b"")


@pytest.fixture
def parties() -> tuple[Sender, Receiver, PrivateKey, PrivateKey]:
    camera, box = PrivateKey.generate(), PrivateKey.generate()
    return Sender(camera, box.public), Receiver(box), camera, box


def test_there_and_back(parties) -> None:
    sender, receiver, camera, _ = parties
    request = sender.seal(b"picture", "image/png", TOPIC, b"7")
    opened = receiver.open(request, TOPIC, b"7")
    assert (opened.payload, opened.content_type, opened.sender, opened.known) == (b"picture", "image/png",
                                                                                   camera.public, True)  # fmt: skip
    reply = opened.reply(b"a seven", "application/json", "replies", b"7")
    assert sender.open(reply, "replies", b"7", request) == (b"a seven", "application/json")
    assert len(request) == len(b"picture") + len("image/png") + 4 + 32 + 32 + 16 + 1
    empty = receiver.open(sender.seal(b"", None, TOPIC, None), TOPIC, None)
    assert (empty.payload, empty.content_type) == (b"", None)


def test_every_byte_counts(parties) -> None:
    """Each byte changed in each of two ways, and each end cut off, in a request and a reply."""
    sender, receiver, _, _ = parties
    request = sender.seal(b"picture", "image/png", TOPIC, b"7")
    reply = receiver.open(request, TOPIC, b"7").reply(b"seven", "text/plain", "replies", b"7")
    for message, take in (
        (request, lambda m: receiver.open(m, TOPIC, b"7")),
        (reply, lambda m: sender.open(m, "replies", b"7", request)),
    ):
        take(message)
        for i in range(len(message)):
            for bit in (1, 0x80):
                changed = bytearray(message)
                changed[i] ^= bit
                with pytest.raises(SealError):
                    take(bytes(changed))
            with pytest.raises(SealError):
                take(message[:i])
        with pytest.raises(SealError):
            take(message + b"\0")


ELSEWHERE = {
    "another topic": (TOPIC + "2", b"7"),
    "another correlation": (TOPIC, b"8"),
    "no correlation": (TOPIC, None),
    "a correlation that ends the topic": (TOPIC[:-1], TOPIC[-1:].encode() + b"7"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_message_is_bound_to_its_topic_and_correlation(parties, case: str) -> None:
    sender, receiver, _, _ = parties
    topic, correlation = ELSEWHERE[case]
    request = sender.seal(b"picture", None, TOPIC, b"7")
    with pytest.raises(SealError) as caught:
        receiver.open(request, topic, correlation)
    assert caught.value.code == "not_opened"
    reply = receiver.open(request, TOPIC, b"7").reply(b"seven", "text/plain", TOPIC, b"7")
    with pytest.raises(SealError):
        sender.open(reply, topic, correlation, request)


def test_only_the_receiver_opens_and_only_its_reply_counts(parties) -> None:
    sender, receiver, camera, box = parties
    request = sender.seal(b"picture", None, TOPIC, b"7")
    with pytest.raises(SealError):
        Receiver(PrivateKey.generate()).open(request, TOPIC, b"7")
    # Another device that knows the sender's public key seals a reply to it.
    stranger = PrivateKey.generate()
    forged = Receiver(stranger).open(Sender(camera, stranger.public).seal(b"", None, TOPIC, b"7"), TOPIC, b"7")
    with pytest.raises(SealError, match="another sender"):
        sender.open(forged.reply(b"eight", "text/plain", "r", b"7"), "r", b"7", request)
    # And the device's reply to another request of the same correlation.
    other = sender.seal(b"another picture", None, TOPIC, b"7")
    reply = receiver.open(other, TOPIC, b"7").reply(b"eight", "text/plain", "r", b"7")
    with pytest.raises(SealError, match="another request"):
        sender.open(reply, "r", b"7", request)
    # A request is no reply, and a reply no request.
    with pytest.raises(SealError):
        receiver.open(reply, "r", b"7")
    assert Receiver(box, [camera.public]).open(request, TOPIC, b"7").known
    assert not Receiver(box, [stranger.public]).open(request, TOPIC, b"7").known


def test_nothing_plain_is_taken(parties) -> None:
    with pytest.raises(SealError) as caught:
        parties[1].open(picture(0), TOPIC, None)
    assert caught.value.code == "not_encrypted"


def test_whatever_comes_is_refused_and_nothing_else(parties) -> None:
    """Two thousand messages, cut, spliced and changed, by a fixed seed."""
    sender, receiver, _, _ = parties
    rng = random.Random(5)
    seeds = [sender.seal(rng.randbytes(n), "image/png", TOPIC, b"7") for n in (0, 1, 100, 1000)]
    for _ in range(2000):
        message = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 4)):
            start, end = sorted(rng.randrange(len(message) + 1) for _ in range(2))
            message[start:end] = rng.randbytes(rng.randrange(0, 40))
        if bytes(message) in seeds:
            continue
        with pytest.raises(SealError):
            receiver.open(bytes(message), TOPIC, b"7")


# Keys


def _int8d(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "agent.cli", *map(str, args)], capture_output=True, text=True,
                          cwd=ROOT)  # fmt: skip


def test_a_new_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "box1.key"
    made = _int8d("key", "new", file)
    assert made.returncode == 0, made.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert _int8d("key", "show", file).stdout == made.stdout
    assert keys.parse_public(made.stdout.strip()) == keys.load(str(file)).public
    again = _int8d("key", "new", file)
    assert (again.returncode, "is there already" in again.stderr) == (78, True)


def test_openssls_keys_are_taken(tmp_path: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "X25519", "-out", tmp_path / "key"], check=True)
    assert len(keys.load(str(tmp_path / "key")).public) == 32


BAD_KEYS = {
    "no file": (None, "can't be read"),
    "no key": ("hello", "not a private key in PEM form"),
    "another curve": (["genpkey", "-algorithm", "ED25519"], "of another kind"),
    "a passphrase": (["genpkey", "-algorithm", "X25519", "-aes128", "-pass", "pass:x"], "without a passphrase"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_bad_key_file_is_named(tmp_path: Path, case: str) -> None:
    content, expected = BAD_KEYS[case]
    if isinstance(content, str):
        (tmp_path / "key").write_text(content)
    elif content is not None:
        subprocess.run(["openssl", *content, "-out", tmp_path / "key"], check=True)
    with pytest.raises(ConfigError, match=expected):
        keys.load(str(tmp_path / "key"))


@pytest.mark.parametrize("text", ["", "x25519:", "x25519:" + "A" * 42, "x25519:" + "A" * 42 + "B", "A" * 43,
                                  "x25519:" + "A" * 43, "x25519:" + "é" * 43])  # fmt: skip
def test_a_bad_public_key_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="public key"):
        keys.parse_public(text)


# On a broker


@pytest.fixture
def box(tmp_path: Path, agent):
    """An agent whose infer topics and whose route are encrypted; its public key, as bytes."""
    key = keys.create(str(tmp_path / "box1.key"))

    def start(senders: str = "", **kwargs: object) -> bytes:
        rest = f'[encryption]\nkey = "{tmp_path}/box1.key"\ninfer = "hpke"\n{senders}\n{ROUTE}encryption = "hpke"\n'
        agent(rest=rest, **kwargs)
        return key.public

    return start


def _recorded(recorder) -> list[tuple[str, bytes]]:
    """All that a client which reads everything has seen."""
    time.sleep(0.5)
    messages = []
    while not recorder.messages.empty():
        message = recorder.messages.get()
        messages.append((message.topic, message.payload + repr(message.properties).encode()))
    return messages


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_broker_reads_neither_picture_nor_prediction(tmp_path, box, broker, peer, protocol: str) -> None:
    recorder = peer("#")
    public = box()
    sent = _int8d("send", PICTURES / "00.png", "--model", "digits", "--device", "box1", "--port", broker.port, "--to",
                  keys.public_text(public), "--protocol", protocol, "--json", "--timeout", 10)  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    reply = json.loads(sent.stdout)
    assert reply["classes"][0]["label"] == truth()[0]
    seen = _recorded(recorder)
    ours = [payload for topic, payload in seen if "infer" in topic or "clients" in topic]
    assert len(ours) == 2  # the request and the reply
    assert not any(map(_tells, ours))
    # The same look at the same messages in clear text finds both.
    assert _tells(sent.stdout.encode())
    peer("nothing").send("int8d/box1/v2/models/digits/infer", picture(0))
    assert any(_tells(payload) for topic, payload in _recorded(recorder) if topic.endswith("/infer"))


def _tells(message: bytes) -> bool:
    """Whether it holds twelve bytes in a row of the picture, or a word of the request or the reply."""
    pixels = picture(0)
    words = (b'"label"', b"logits", b"probability", b"image/png")
    return any(word in message for word in words) or any(pixels[i : i + 12] in message for i in range(len(pixels) - 11))


def test_a_route_is_encrypted_and_takes_nothing_else(tmp_path, box, peer) -> None:
    camera = PrivateKey.generate()
    sender = Sender(camera, box())
    client = peer("predictions/#")
    topic = "cameras/1/frame"

    def exchange(payload: bytes) -> object:
        client.send(topic, payload, CorrelationData=b"1", ContentType="image/png")
        return client.receive()

    sealed = sender.seal(picture(0), "image/png", topic, b"1")
    reply = exchange(sealed)
    answer, _ = sender.open(reply.payload, "predictions/1", b"1", sealed)
    assert json.loads(answer)["classes"][0]["label"] == truth()[0]
    assert not _tells(reply.payload)
    assert exchange(sealed).payload == reply.payload  # a repetition, from the cache
    assert json.loads(exchange(picture(0)).payload)["error"]["code"] == "not_encrypted"
    changed = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    assert json.loads(exchange(changed).payload)["error"]["code"] == "not_opened"
    # An error of the model is an answer like any other: sealed.
    wrong = sender.seal(b"not a picture", "image/png", topic, b"1")
    error = exchange(wrong).payload
    assert b"error" not in error
    document = json.loads(sender.open(error, "predictions/1", b"1", wrong)[0])
    assert document["error"]["code"] == "invalid_input"


def test_a_message_replayed_to_another_topic_is_refused(box, peer) -> None:
    sender = Sender(PrivateKey.generate(), box())
    client = peer("predictions/#")
    client.send("cameras/2/frame", sender.seal(picture(0), "image/png", "cameras/1/frame", None))
    assert client.reply()["error"]["code"] == "not_opened"


def test_only_listed_senders_are_served(tmp_path, box, broker) -> None:
    known, stranger = PrivateKey.generate(), PrivateKey.generate()
    public = box(f'senders = ["{keys.public_text(known.public)}"]')
    with Client(Broker(port=broker.port), "box1", sealing=Sender(known, public)) as client:
        assert client.infer("digits", picture(0), "image/png").document["classes"][0]["label"] == truth()[0]
    with Client(Broker(port=broker.port), "box1", sealing=Sender(stranger, public)) as client:
        with pytest.raises(Refused) as caught:
            client.infer("digits", picture(0), "image/png")
        assert caught.value.code == "unknown_sender"


def test_a_client_with_the_wrong_key_of_the_device_is_told(box, broker) -> None:
    box()
    wrong = Sender(PrivateKey.generate(), PrivateKey.generate().public)
    with Client(Broker(port=broker.port), "box1", sealing=wrong) as client:
        with pytest.raises(Refused) as caught:
            client.infer("digits", picture(0), "image/png")
        assert caught.value.code == "not_opened"


def test_a_plain_reply_to_an_encrypted_request_is_dropped(broker, peer) -> None:
    """A broker's operator answers in the device's place."""
    operator = peer("int8d/box1/v2/models/+/infer")
    sealing = Sender(PrivateKey.generate(), PrivateKey.generate().public)
    with Client(Broker(port=broker.port), "box1", sealing=sealing) as client:
        future = client.submit("digits", picture(0), timeout=2)
        request = operator.receive()
        operator.send(request.properties.ResponseTopic, b'{"model_name": "digits", "outputs": []}',
                      CorrelationData=request.properties.CorrelationData)  # fmt: skip
        with pytest.raises(Exception, match="no reply"):
            future.result()


def test_a_dead_letter_stays_encrypted(tmp_path: Path, broker, peer, stack) -> None:
    key = keys.create(str(tmp_path / "box1.key"))
    camera = PrivateKey.generate()
    sender = Sender(camera, key.public)
    rest = f'[encryption]\nkey = "{tmp_path}/box1.key"\n{ROUTE}encryption = "hpke"\n'
    planted = Planted(tmp_path, broker.port, rest)
    stack.callback(planted.kill)
    client = peer("predictions/#", "int8d/box1/dead-letter")
    sealed = sender.seal(b"PLANT crash", None, "cameras/1/frame", b"1")
    client.send("cameras/1/frame", sealed, CorrelationData=b"1")
    for _ in range(2):
        planted.process.wait(20)
        planted.start(wait=False)
    found = {message.topic: message for message in (client.receive(20), client.receive(20))}
    letter = found["int8d/box1/dead-letter"]
    assert letter.payload == sealed
    assert letter.properties.CorrelationData == b"1"
    assert Receiver(key).open(letter.payload, "cameras/1/frame", b"1").payload == b"PLANT crash"
    answer, _ = sender.open(found["predictions/1"].payload, "predictions/1", b"1", sealed)
    assert json.loads(answer)["error"]["code"] == "poisoned"


class Planted(Agent):
    """With faults, by message."""

    module = "tests.planted"


def test_an_encrypted_route_without_a_key_is_named(tmp_path: Path, agent) -> None:
    running = agent(rest=ROUTE + 'encryption = "hpke"\n', wait=False)
    assert running.process.wait(30) == 78
    assert "int8d key new" in running.log()
