"""Who sends pictures all the while, and looks at each answer.

with Traffic(device.broker.port) as traffic:
    ...
traffic.shown                  # {0, 1}: the releases whose answers came
traffic.failed                 # codes of those that were refused, and "wrong"
"""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType

from agent.engine import load
from agent.predict import Predictor
from tests.agent_process import DIGITS, Peer, picture

PAUSE_S = 0.03
_PICTURES = 40


class Traffic:
    """Thirty pictures a second. When it ends, every one of them must have been answered."""

    def __init__(self, port: int, pause_s: float = PAUSE_S) -> None:
        self._peer = Peer(port, ["predictions/+"])
        self._pause_s = pause_s
        self._ending = threading.Event()
        alone = Predictor(load(DIGITS))
        self._pictures = [picture(i) for i in range(_PICTURES)]
        self._expected = [_class(alone.predict(p)) for p in self._pictures]
        self.sent = 0
        self.answers: dict[int, int | str] = {}  # by number: the release, or what else came
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> Traffic:
        self._peer.client.on_message = lambda client, userdata, message: self._take(message)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join()
        until = time.monotonic() + 15
        while kind is None and len(self.answers) < self.sent and time.monotonic() < until:
            time.sleep(0.02)
        self._peer.close()
        if kind is None:
            missing = sorted(set(range(self.sent)) - set(self.answers))
            assert not missing, f"{len(missing)} of {self.sent} were not answered, the first: {missing[0]}"

    @property
    def shown(self) -> set[int]:
        """Releases that have answered."""
        return {a for a in list(self.answers.values()) if isinstance(a, int)}

    @property
    def failed(self) -> set[str]:
        """Codes of refusals, and ``wrong`` where an answer is not that of the release that it names."""
        return {a for a in list(self.answers.values()) if isinstance(a, str)}

    def after(self, count: int = 5, timeout: float = 15) -> set[int | str]:
        """What the next answers are, of pictures that are sent from now on."""
        begun = self.sent
        wanted = range(begun + 1, begun + 1 + count)
        until = time.monotonic() + timeout
        while not set(wanted) <= set(self.answers):
            assert time.monotonic() < until, f"no answers: {self.sent} sent, {len(self.answers)} answered"
            time.sleep(0.02)
        return {self.answers[n] for n in wanted}

    def _send(self) -> None:
        while not self._ending.wait(self._pause_s):
            self._peer.client.publish(f"cameras/{self.sent}/frame", self._pictures[self.sent % _PICTURES], 1)
            self.sent += 1

    def _take(self, message: object) -> None:
        number = int(message.topic.rpartition("/")[2])  # type: ignore[attr-defined]
        payload = message.payload  # type: ignore[attr-defined]
        reply = json.loads(payload)
        if "error" in reply:
            self.answers[number] = reply["error"]["code"]
            return
        shift = (_class(payload) - self._expected[number % _PICTURES]) % 10
        version = reply["model_version"]
        self.answers[number] = shift if version == (str(shift) if shift else "1") else "wrong"


def _class(reply: bytes) -> int:
    found: int = json.loads(reply)["classes"][0]["index"]
    return found
