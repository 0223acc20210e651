"""Updates as the broker sees them: a message on ``…/v2/repository/models/{model}/load`` asks for one, the status of
each model is retained beside it.

The message's payload is empty, or JSON: ``{"parameters": {"action": "install", "release": 7}}``; action is ``install``
(of what is due, or of the release that is named), ``check`` or ``rollback`` (where a release is named, of that one
alone). It is acknowledged once the wish is on the disk. Where it brings a Response Topic, the
status goes there, too, once it has come to its end; or ``{"error": {"code", "message"}}``. What is retained there is
no wish: it would come again with each connection.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections.abc import Callable

import msgspec

from agent.errors import Int8dError
from agent.logs import Sparing
from agent.mqtt.messages import Incoming, Outgoing
from agent.mqtt.routes import Filter
from agent.repository.reasons import Refused
from agent.updates.status import Status
from agent.updates.updater import Updates
from agent.updates.wishes import Action
from agent.wire import oip

log = logging.getLogger(__name__)
_JSON = "application/json"
_MOST_BYTES = 4096
_LOG_S = 10.0  # one line of a kind, whatever is asked for


class _Parameters(msgspec.Struct, frozen=True):
    action: Action = "install"
    release: int | None = None


class _Load(msgspec.Struct, frozen=True):
    parameters: _Parameters = _Parameters()


class Remote:
    """base: of the device's topics. publish: to the broker. done: acknowledges. reply_topic: where a message's sender
    may be answered. most: messages that wait to be taken, of all models.
    """

    def __init__(
        self,
        base: str,
        updates: Updates,
        publish: Callable[[Outgoing], None],
        done: Callable[[Incoming], None],
        reply_topic: Callable[[Incoming], str | None],
        most: int,
    ) -> None:
        self._models = f"{base}/v2/repository/models"
        self.filter = Filter(f"{self._models}/+/load")
        self._updates, self._publish, self._done, self._reply_topic = updates, publish, done, reply_topic
        self._most = most
        self._logged = Sparing(_LOG_S)
        self._taken: queue.SimpleQueue[tuple[str, Incoming]] = queue.SimpleQueue()
        # Wishes go to the disk, and inputs must not wait for that.
        threading.Thread(target=self._run, name="update-wishes", daemon=True).start()

    def take(self, message: Incoming) -> bool:
        """Does what the message asks for, and acknowledges it, in the background, if it is one for us."""
        found = self.filter.match(message.topic)
        if found is None:
            return False
        if self._taken.qsize() < self._most:
            self._taken.put((found[0], message))
        else:
            why = ("busy", f"{self._most} messages wait already (updates.max_wishes, of each model)")
            self._answer(self._reply_topic(message), message.correlation, None, why)
            self._done(message)
        return True

    def _run(self) -> None:
        while True:
            model, message = self._taken.get()
            try:
                self._ask(model, message)
            except Exception:  # a bug must not end the thread, nor have the message come for ever
                log.exception("a message on '%s' could not be taken", message.topic)
            self._done(message)

    def _ask(self, model: str, message: Incoming) -> None:
        if message.retained:
            log.warning("what is retained on '%s' is not done: publish without the retain flag", message.topic)
            return
        topic = self._reply_topic(message)
        correlation = message.correlation

        def answer(status: Status | None, why: Refused | None) -> None:
            self._answer(topic, correlation, status, None if why is None else (why.code, str(why)))

        try:
            if len(message.payload) > _MOST_BYTES or message.missing:
                raise Int8dError(f"the payload has more than {_MOST_BYTES} bytes")
            wish = msgspec.json.decode(message.payload, type=_Load) if message.payload.strip() else _Load()
            action = wish.parameters.action
            sign = _sign(message) if action == "rollback" else ""  # the others may as well be done twice
            if message.duplicate and self._updates.has_asked(model, sign):
                log.info("model %s: that %s comes again, and is known", model, action)
                return
            self._updates.ask(model, action, answer, wish.parameters.release, sign)
            self._log(f"model {model}: {action} is asked for over MQTT")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            self._answer(topic, correlation, None, ("invalid_input", f"not understood: {e}"))
        except Refused as e:
            answer(None, e)
        except Int8dError as e:
            self._answer(topic, correlation, None, ("invalid_input", str(e)))

    def tell(self, status: Status) -> None:
        """Publishes a status, retained."""
        self._publish(Outgoing(f"{self._models}/{status.model}/status", msgspec.json.encode(status), 1, True))

    def announce(self) -> None:
        """On every connection: all of them."""
        for status in self._updates.statuses():
            self.tell(status)

    def _answer(
        self, topic: str | None, correlation: bytes | None, status: Status | None, error: tuple[str, str] | None
    ) -> None:
        if error is not None:
            self._log("a load is refused: " + ": ".join(error), kind=error[0])
        if topic is None:
            return
        payload = msgspec.json.encode(status) if error is None else oip.error(*error, None)
        self._publish(Outgoing(topic, payload, 1, False, correlation, None, _JSON))

    def _log(self, text: str, kind: str = "") -> None:
        line = self._logged.line(kind or text, text)
        if line:
            log.info("%s", line)


def _sign(message: Incoming) -> str:
    """What a message is known by where the broker delivers it again; empty for QoS 0, which it does not."""
    if not message.qos:
        return ""
    body = hashlib.sha256(message.payload + b"\0" + (message.correlation or b"")).hexdigest()
    return f"{message.mid}:{body[:16]}"
