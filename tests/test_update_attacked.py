"""While a repository or the line to it is attacked, the model in service answers every message, and the status says
what is wrong. tests/test_trust.py has the table of attacks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.agent_process import Peer, picture
from tests.updates import web
from tests.updates.device import QUICK, Device

IMPATIENT = "stall_s = 1.5\nmin_bytes_per_s = 1024\nrequest_timeout_s = 5\n"


class Sender:
    """A picture each 20 ms."""

    def __init__(self, port: int) -> None:
        self.sent = 0
        self._peer = Peer(port, ["predictions/1"])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            self._peer.client.publish("cameras/1/frame", picture(0), 1)
            self.sent += 1

    def stop(self) -> list[dict]:
        """Every answer."""
        self._ended.set()
        self._thread.join()
        replies = [self._peer.reply(5) for _ in range(self.sent)]
        self._peer.close()
        return replies


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """It has committed release 1."""
    with Device(tmp_path_factory.mktemp("device"), QUICK + IMPATIENT) as device:
        device.publish(1)
        assert device.load()["state"] == "committed"
        yield device


# name: the end of the path that is answered, how, and the reason
ATTACKS: dict[str, tuple[str, web.Hostile, str]] = {
    "captive portal": ("", web.portal, "not_a_repository"),
    "endless metadata": ("timestamp.json", web.endless, "endless_data"),
    "slow drip": ("timestamp.json", web.drip, "too_slow"),
    "endless model": (".safetensors", web.endless, "endless_data"),
    "slow drip of the model": (".safetensors", web.drip, "too_slow"),
    "another model": (".safetensors", web.other_bytes, "damaged"),
}


def test_under_attack_the_old_model_answers_and_the_status_says_why(device: Device) -> None:
    device.publish(2)
    sender = Sender(device.broker.port)
    try:
        for name, (end, attack, code) in ATTACKS.items():
            device.drain()
            device.web.hostile[end] = attack
            device.ask()
            status = device.wait(lambda s: s["repository"] is not None)
            assert status["repository"]["code"] == code, name
            assert status["serving"]["release"] == 1, name
            device.web.hostile.clear()
            device.ask("check")
            device.wait(lambda s: s["repository"] is None)
    finally:
        replies = sender.stop()
    assert len(replies) == sender.sent > 100
    assert {reply["model_version"] for reply in replies} == {"1"}
    status = device.load()
    assert (status["state"], status["serving"]["release"]) == ("committed", 2)
    time.sleep(0.1)
    assert device.answers() == 2
    assert "Traceback" not in device.agent.log()
