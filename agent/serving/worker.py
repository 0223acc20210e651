"""The thread that computes: takes requests one by one, and answers each, whatever happens."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.errors import InputError
from agent.serving.admission import Admission
from agent.serving.request import Ledger, Request
from agent.serving.strikes import Strikes

log = logging.getLogger(__name__)


class Predicts(Protocol):
    """What is asked of ``agent.predict.Predictor``."""

    def predict(
        self, payload: bytes, content_type: str | None, ledger: Ledger | None, request_id: str | None
    ) -> bytes: ...


class Worker:
    """Serves models by name from one queue.

    refuse(request, code, message) answers with an error. ``progress()`` tells a watchdog whether it moves.
    """

    def __init__(
        self,
        models: Mapping[str, Predicts],
        admission: Admission,
        refuse: Callable[[Request, str, str], None],
        strikes: Strikes,
    ) -> None:
        self._models, self._admission, self._refuse, self._strikes = models, admission, refuse, strikes
        self._stop = threading.Event()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Finishes what is queued; whether that took no longer than ``timeout`` seconds."""
        self._stop.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Nothing under way."""
        return self._busy_since is None

    def stuck_for(self) -> float:
        """Seconds that the request under way has taken so far; 0 while idle. Infinite once the thread has died."""
        if not self._thread.is_alive() and not self._stop.is_set():
            return float("inf")
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        while True:
            request = self._admission.take(0.5)
            if request is None:
                if self._stop.is_set():
                    return
                continue
            self._busy_since = time.monotonic()
            try:
                self._serve(request)
            finally:
                self._busy_since = None

    def _serve(self, request: Request) -> None:
        request.ledger.stamp("queue")
        if request.expired():
            self._refuse(request, "expired", "the deadline passed in stage 'queue'")
            return
        predictor = self._models.get(request.model)
        if predictor is None:
            self._refuse(request, "unknown_model", f"no model '{request.model}'; there are: {', '.join(self._models)}")
            return
        if self._strikes.out(request.digest):
            count = self._strikes.count(request.digest)
            self._refuse(request, "poisoned", f"the process died {count} times while it worked on this input")
            return
        self._strikes.begin(0, [request.digest])
        try:
            reply = predictor.predict(request.payload, request.content_type, request.ledger, request.id)
        except InputError as e:
            self._refuse(request, "invalid_input", str(e))
        except Exception as e:  # a bug must cost the one message that found it, not the daemon
            log.exception("model %s: a request failed", request.model)
            self._refuse(request, "internal", f"{type(e).__name__}: {e}")
        else:
            if request.expired():
                self._refuse(request, "expired", f"the deadline passed in stage '{request.ledger.stage}'")
            else:
                request.reply(reply, "application/json")
        finally:
            self._strikes.end(0, [request.digest])
