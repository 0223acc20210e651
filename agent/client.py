"""The sending side: publish an input, and try again until it is answered.

    from agent.client import Client
    from agent.config import Broker

    with Client(Broker(host="127.0.0.1"), device="box1") as client:
        picture = open("7.png", "rb").read()
        print(client.infer("digits", picture, "image/png").document["classes"][0]["label"])
        futures = [client.submit("digits", picture, "image/png") for _ in range(100)]  # 64 under way at a time
        print(sum(future.result().round_trip_ns for future in futures) / 100e6, "ms")

A broker that dies can lose what it had acknowledged, so only a sender that retries until it is answered loses nothing.
Retries carry the same correlation, and the agent answers a repetition from its cache. A message is sent again after
``retry`` seconds, then after twice as long and so on, with jitter; and at once after a new connection if the broker had
taken it, because the broker behind it may have forgotten everything. What it had not taken, the session repeats.

With a spool, a file of this box, messages survive the sender, too: each is on disk when ``submit`` returns, and leaves
it when it is answered. After a restart, ``resume`` sends what is left under the same correlations:

    with Client(Broker(host="127.0.0.1"), device="box1", spool="unanswered.db") as client:
        for future in client.resume():
            print(future.result().id)
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import threading
import time
import uuid
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING

from agent.calls import NEVER, Call, Closed, NoAnswer, Refused, Reply, WindowFull, error_of
from agent.errors import InputError, Int8dError
from agent.mqtt.messages import SEALED, Incoming, Outgoing, Settings
from agent.mqtt.session import Session
from agent.spool import Spool, SpoolFull

if TYPE_CHECKING:
    from agent.wire.sealed import Sender

__all__ = ["Client", "Closed", "NoAnswer", "Refused", "Reply", "SpoolFull", "WindowFull"]
log = logging.getLogger(__name__)
_TICK_S = 0.01  # the timer looks at all calls at once, and no more often than this
_ID = re.compile(r"[^/+#\x00]{1,128}")


class Client:
    """One connection of a sender. Safe to use from several threads.

    client_id: default, a new one; with a spool, one that is derived from its path, so that it stays the same.
    max_in_flight: how many messages may be without an answer. retry_max: seconds between two sendings of a message, at
    most. retry_refused: whether a message that is refused as ``overloaded`` is sent again after a back-off, until its
    time is up; no other refusal is. sealing: encrypts requests, and takes no reply but its receiver's. spool,
    spool_bytes: the file that keeps unanswered messages, as they are, and how many bytes of them. Raises ``Int8dError``
    where the spool can't be opened, for example because another process has it.
    """

    def __init__(
        self,
        broker: Settings,
        device: str,
        prefix: str = "int8d",
        client_id: str = "",
        *,
        max_in_flight: int = 64,
        retry_max: float = 30.0,
        retry_refused: bool = False,
        sealing: Sender | None = None,
        spool: str | os.PathLike[str] | None = None,
        spool_bytes: int = 1 << 30,
    ) -> None:
        self._base = f"{prefix}/{device}"
        self._spool = None if spool is None else Spool(spool, spool_bytes)
        self._id = client_id or f"int8d-send-{uuid.uuid4().hex[:12] if self._spool is None else self._spool.owner}"
        self._most, self._retry_max, self._retry_refused = max_in_flight, retry_max, retry_refused
        self._sealing = sealing
        self._calls: dict[str, Call] = {}
        self._changed = threading.Condition()  # guards the calls; notified where the timer or a caller may wait for it
        self._wake_at = NEVER
        self._closed = False
        self._network_thread = 0
        self._replies = f"{self._base}/clients/{self._id}/reply"
        # Under 3.1.1 the reply's topic ends in our name and the request's id; see docs/protocol.md.
        subscriptions = [(self._replies, 1), (f"{self._base}/v2/models/+/infer/response/{self._id}/+", 1)]
        self._session = Session(broker, self._id, subscriptions, self._receive, self._connected, clean=True)
        self._timer = threading.Thread(target=self._watch, name="client-timer", daemon=True)

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begins to connect, in the background. ``with`` does it, too."""
        self._session.start()
        self._timer.start()

    def stop(self) -> None:
        """Disconnects; what is unanswered ends with ``Closed``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._timer.join()
        self._session.stop()
        for call in list(self._calls.values()):
            self._resolve(call, Closed("the client was stopped before the answer came"))
        if self._spool is not None:
            self._spool.close()

    def wait_connected(self, timeout: float) -> None:
        """Raises ``NoAnswer`` where no connection comes about in ``timeout`` seconds."""
        if not self._session.wait_ready(timeout):
            raise NoAnswer(f"no connection to the broker within {timeout:g} s ({self._session.refusal or 'no answer'})")

    @property
    def protocol(self) -> str:
        """The MQTT version in use: ``5`` or ``3.1.1``."""
        return self._session.version

    def infer(
        self,
        model: str,
        payload: bytes,
        content_type: str | None = None,
        timeout: float | None = 30.0,
        retry: float = 2.0,
        request_id: str | None = None,
    ) -> Reply:
        """Sends and waits. Arguments and errors as of ``submit``; errors of its future are raised, too."""
        if threading.get_ident() == self._network_thread:
            raise Int8dError("infer can't be called in a future's callback, where replies arrive; use submit")
        future = self.submit(model, payload, content_type, timeout, retry, request_id)
        try:
            return future.result()
        finally:
            future.cancel()

    def submit(
        self,
        model: str,
        payload: bytes,
        content_type: str | None = None,
        timeout: float | None = 30.0,
        retry: float = 2.0,
        request_id: str | None = None,
        block: bool = True,
    ) -> Future[Reply]:
        """Sends and does not wait. The future's callbacks run where replies arrive, so they must be quick.

        Args:
            model: the model's name at the agent.
            payload: a picture, a tensor or a request; see docs/protocol.md.
            content_type: its MQTT content type, where known; it travels over MQTT 5 only.
            timeout: seconds until the future ends with ``NoAnswer``; None: never. It travels with the message (MQTT 5),
                so that nobody computes what nobody waits for.
            retry: seconds until the message is sent again the first time.
            request_id: the correlation; default, a new one. 1-128 characters, without / + #.
            block: whether to wait where ``max_in_flight`` messages are unanswered.

        Returns:
            A future of the ``Reply``. It may end with ``Refused``, ``NoAnswer`` or ``Closed``. Cancelling it gives the
            message up.

        Raises:
            WindowFull: no place came free within ``timeout`` seconds, or at once where ``block`` is false or the
                caller is a future's callback.
            Closed: the client was stopped.
            SpoolFull: there is a spool, and it can't take the message.
            InputError: the request_id can't be used, or is under way.
        """
        name = uuid.uuid4().hex if request_id is None else request_id
        if not _ID.fullmatch(name):
            raise InputError(f"request_id '{name}': use 1-128 characters, without / + #")
        call = Call(name, model, payload, content_type, timeout, retry)
        self._enter(call, block)
        if self._spool is not None:
            try:
                call.spooled = self._spool.store(name, model, payload, content_type)
            except SpoolFull:
                self._leave(call)
                raise
        self._begin(call)
        return call.future

    def resume(self, timeout: float | None = None, retry: float = 2.0) -> list[Future[Reply]]:
        """Sends what the spool still holds: what was not answered before the process died, the client was stopped or
        the time was up. In order; waits for places in the window as ``submit`` does. Arguments and errors as there.
        """
        futures: list[Future[Reply]] = []
        if self._spool is None:
            return futures
        for message in self._spool.messages():
            if message.name not in self._calls:
                call = Call(message.name, message.model, message.payload, message.content_type, timeout, retry)
                call.spooled = message.number
                self._enter(call, True)
                self._begin(call)
                futures.append(call.future)
        return futures

    def _enter(self, call: Call, block: bool) -> None:
        """Gives the call a place in the window."""
        block = block and threading.get_ident() != self._network_thread  # where no place could ever come free
        with self._changed:
            while len(self._calls) >= self._most and not self._closed:
                left = call.deadline - time.monotonic()
                if not block or left <= 0:
                    raise WindowFull(f"{self._most} messages are unanswered (max_in_flight); wait for some of them")
                self._changed.wait(None if left == NEVER else left)
            if self._closed:
                raise Closed("the client is stopped")
            if call.name in self._calls:
                raise InputError(f"request_id '{call.name}' is under way already")
            self._calls[call.name] = call

    def _begin(self, call: Call) -> None:
        """Sends a new call for the first time, here or, without a connection, by the timer once there is one."""
        name = call.name
        call.future.add_done_callback(lambda future: self._given_up(name, future))  # no circle through the call
        with self._changed:
            connected = self._session.connected
            if connected:
                self._schedule(call)
            else:
                call.due = 0.0
            if min(call.deadline, call.due) < self._wake_at:
                self._changed.notify_all()
        if connected:
            self._send(call)

    # Sending

    def _send(self, call: Call) -> None:
        """Publishes a copy. When the next is due was said before, so that nobody else does it at the same time."""
        call.taken = False
        call.attempts += 1
        call.sent_ns = call.sent_ns or time.monotonic_ns()
        topic = f"{self._base}/v2/models/{call.model}/infer"
        expires = None if call.deadline == NEVER else call.deadline
        if self._session.version == "5":
            stamps, expiry_s = [("source_timestamp_us", str(time.time_ns() // 1000))], None
            if expires is not None:
                left = max(0.001, expires - time.monotonic())
                stamps.append(("timeout_us", str(round(left * 1e6))))
                expiry_s = math.ceil(left)
            payload, content_type = self._sealed(call, topic, call.name.encode())
            message = Outgoing(topic, payload, 1, False, call.name.encode(), self._replies, content_type,
                               tuple(stamps), expiry_s)  # fmt: skip
        else:
            topic += f"/request/{self._id}/{call.name}"
            message = Outgoing(topic, self._sealed(call, topic, None)[0])
        self._session.publish(message, lambda reason: self._confirmed(call, reason), expires)

    def _sealed(self, call: Call, topic: str, correlation: bytes | None) -> tuple[bytes, str | None]:
        """What is published of a call, and its content type."""
        if self._sealing is None:
            return call.payload, call.content_type
        if call.sealed[0] != topic:
            call.sealed = topic, self._sealing.seal(call.payload, call.content_type, topic, correlation)
        return call.sealed[1], SEALED

    def _confirmed(self, call: Call, reason: str | None) -> None:
        call.taken, call.unwanted = True, reason

    def _schedule(self, call: Call) -> None:
        call.due = time.monotonic() + call.delay * random.uniform(0.75, 1.25)
        call.delay = min(call.delay * 2, self._retry_max)

    def _connected(self) -> None:
        """On every connection: what the broker behind it may never have seen is sent now."""
        self._network_thread = threading.get_ident()
        with self._changed:
            for call in self._calls.values():
                call.delay = call.retry  # the agent may come back later than we, to a broker that has forgotten it
                if call.taken:
                    call.due = 0.0
                elif call.attempts:
                    self._schedule(call)
            self._changed.notify_all()

    # The timer

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now, connected = time.monotonic(), self._session.connected
                calls = list(self._calls.values())
                late = [c for c in calls if c.deadline <= now]
                due = [c for c in calls if c.due <= now < c.deadline] if connected else []
                for call in due:
                    self._schedule(call)
                if not late and not due:
                    next_s = min((min(c.deadline, c.due if connected else NEVER) for c in calls), default=NEVER)
                    self._wake_at = next_s
                    self._changed.wait(None if next_s == NEVER else max(_TICK_S, next_s - now))
                    continue
            for call in late:
                self._resolve(call, call.refusal or NoAnswer(self._why(call)))
            for call in due:
                self._send(call)

    def _why(self, call: Call) -> str:
        if not self._session.connected:
            return f"no reply in time: no connection to the broker ({self._session.refusal or 'lost'})"
        if call.unwanted is not None:
            return f"no reply in time: the broker refuses the message ({call.unwanted})"
        return f"no reply from {self._base} in time; does it run, and serve '{call.model}'?"

    # Answers

    def _receive(self, message: Incoming) -> None:
        self._network_thread = threading.get_ident()
        try:
            self._take(message)
        except Exception:
            log.exception("a reply on '%s' could not be taken", message.topic)
        finally:
            self._session.done(message)

    def _take(self, message: Incoming) -> None:
        name = message.correlation.decode(errors="replace") if message.correlation else message.topic.rsplit("/", 1)[1]
        call = self._calls.get(name)
        if call is None:
            return
        payload = message.payload if self._sealing is None else self._opened(call, message)
        if payload is None:
            return
        error = error_of(payload)
        if error is None:
            now = time.monotonic_ns()
            self._resolve(call, Reply(payload, now - (call.sent_ns or now), name, call.attempts))
            return
        call.refusal = Refused(error.code, error.message, payload)
        if error.code != "overloaded" or not self._retry_refused:
            self._resolve(call, call.refusal)

    def _opened(self, call: Call, message: Incoming) -> bytes | None:
        """The reply's payload, if it is the agent's; or an error in clear text, such as that of an agent that could not
        open the request. Who forges one keeps a reply from us, as a broker can anyway, but puts none in its place.
        """
        from agent.wire.sealed import SealError

        assert self._sealing is not None
        try:
            return self._sealing.open(message.payload, message.topic, message.correlation, call.sealed[1])[0]
        except SealError as e:
            if e.code == "not_encrypted" and error_of(message.payload) is not None:
                return message.payload
            log.warning("a reply on '%s' is dropped: %s", message.topic, e)
            return None

    def _leave(self, call: Call) -> bool:
        """Takes the call out of the window; whether it was in it."""
        with self._changed:
            if self._calls.get(call.name) is not call:
                return False
            del self._calls[call.name]
            self._changed.notify_all()
            return True

    def _resolve(self, call: Call, answer: Reply | Int8dError) -> None:
        if not self._leave(call):
            return
        if isinstance(answer, Reply | Refused):
            self._forget(call)
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            if isinstance(answer, Reply):
                call.future.set_result(answer)
            else:
                call.future.set_exception(answer)
        except BaseException:  # of a callback: it must end neither the network's thread nor the timer
            log.exception("a callback failed")

    def _given_up(self, name: str, future: Future[Reply]) -> None:
        call = self._calls.get(name)
        if future.cancelled() and call is not None and call.future is future and self._leave(call):
            self._forget(call)

    def _forget(self, call: Call) -> None:
        if self._spool is not None and call.spooled is not None:
            self._spool.remove(call.spooled)
