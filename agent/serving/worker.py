"""The threads that compute: each takes what waits and answers it, one by one or some together, whatever happens."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from agent.errors import InputError
from agent.serving.admission import Admission
from agent.serving.batcher import Batcher, Seat
from agent.serving.request import Request
from agent.serving.strikes import Strikes

log = logging.getLogger(__name__)
Refuse = Callable[[Request, str, str], None]
_LOOK_S = 0.002  # between two looks at the workers


class Workers:
    """As many threads as there are sets of seats, all serving one queue. refuse(request, code, message) answers with
    an error. With one worker, replies have the order of the queue.
    """

    def __init__(
        self, seats: Sequence[Mapping[str, Seat]], admission: Admission, refuse: Refuse, strikes: Strikes
    ) -> None:
        batcher = Batcher(admission, strikes, len(seats))
        self._replacing = threading.Lock()
        self._workers = [_Worker(i, models, admission, batcher, refuse, strikes) for i, models in enumerate(seats)]

    def start(self) -> None:
        """Begins to serve."""
        for worker in self._workers:
            worker.thread.start()

    def stop(self, timeout: float) -> bool:
        """Finishes what is queued; whether that took no longer than ``timeout`` seconds."""
        until = time.monotonic() + timeout
        for worker in self._workers:
            worker.stop.set()
        for worker in self._workers:
            worker.thread.join(max(0.0, until - time.monotonic()))
        return not any(worker.thread.is_alive() for worker in self._workers)

    @property
    def idle(self) -> bool:
        """Nothing under way."""
        return all(worker.busy_since is None for worker in self._workers)

    def replace(self, name: str, seats: Sequence[Seat]) -> None:
        """Has ``name`` served by other seats from each worker's next request on, or by some where it had none. What is
        under way ends as it began; nothing waits. seats: shared out as ``agent.replicas.seats_of`` does; no more than
        workers.
        """
        assert 0 < len(seats) <= len(self._workers)
        with self._replacing:  # each model is updated by a thread of its own
            for i, worker in enumerate(self._workers):
                worker.models = {**worker.models, name: seats[i % len(seats)]}

    def settled(self, timeout: float) -> bool:
        """Waits until no worker serves by seats that were replaced before the call; whether that took no longer than
        ``timeout`` seconds.
        """
        until = time.monotonic() + timeout
        begun = [(worker, worker.begun) for worker in self._workers]
        while any(worker.busy_since is not None and worker.begun == since for worker, since in begun):
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_S)
        return True

    def stuck_for(self) -> float:
        """Seconds that the longest run under way has taken so far; 0 while idle. Infinite once a thread has died."""
        return max(worker.stuck_for() for worker in self._workers)


class _Worker:
    def __init__(
        self,
        number: int,
        models: Mapping[str, Seat],
        admission: Admission,
        batcher: Batcher,
        refuse: Refuse,
        strikes: Strikes,
    ) -> None:
        self._number, self._admission, self._batcher = number, admission, batcher
        self.models = models  # never changed, only exchanged: the worker reads it without a lock
        self._refuse, self._strikes = refuse, strikes
        self.stop = threading.Event()
        self.busy_since: float | None = None
        self.begun = 0.0  # when what is under way, or was last, was taken from the queue
        self._anywhere = frozenset(os.sched_getaffinity(0))
        self._cores = self._anywhere
        self.thread = threading.Thread(target=self._run, name=f"worker{number or ''}", daemon=True)

    def stuck_for(self) -> float:
        if not self.thread.is_alive() and not self.stop.is_set():
            return float("inf")
        since = self.busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        while True:
            request = self._admission.take(0.5)
            if request is None:
                if self.stop.is_set():
                    return
                continue
            self.begun = self.busy_since = time.monotonic()  # before it looks for a seat: ``settled`` relies on it
            try:
                self._serve(request)
            finally:
                self.busy_since = None

    def _serve(self, request: Request) -> None:
        models = self.models
        seat = models.get(request.model)
        if seat is None:
            request.ledger.stamp("queue")
            self._refuse(request, "unknown_model", f"no model '{request.model}'; there are: {', '.join(models)}")
            return
        if (seat.cores or self._anywhere) != self._cores:
            self._cores = seat.cores or self._anywhere
            os.sched_setaffinity(0, self._cores)
        gathered = self._batcher.gather(request, seat)
        while run := self._batcher.next_run(gathered, seat):
            self.busy_since = time.monotonic()
            ready = [r for r in run if self._ready(r)]
            if self._strikes.any:
                self._watched(ready, seat)
            else:
                self._compute(ready, seat)

    def _watched(self, ready: list[Request], seat: Seat) -> None:
        """While some input has a strike: it is not computed beside another."""
        alone = any(self._strikes.count(r.digest) for r in ready)
        self._strikes.quarantine.enter(alone)
        self.busy_since = time.monotonic()
        try:
            self._compute(ready, seat)
        finally:
            self._strikes.quarantine.leave(alone)

    def _compute(self, ready: list[Request], seat: Seat) -> None:
        digests = [r.digest for r in ready]
        self._strikes.begin(self._number, digests)
        try:
            if len(ready) == 1:
                self._alone(ready[0], seat)
            elif ready:
                self._together(ready, seat)
        finally:
            self._strikes.end(self._number, digests)

    def _ready(self, request: Request) -> bool:
        request.ledger.stamp("queue")
        if request.expired():
            self._refuse(request, "expired", "the deadline passed in stage 'queue'")
            return False
        if self._strikes.out(request.digest):
            count = self._strikes.count(request.digest)
            self._refuse(request, "poisoned", f"the process died {count} times while it worked on this input")
            return False
        return True

    def _alone(self, request: Request, seat: Seat) -> None:
        try:
            reply = seat.predictor.predict(request.payload, request.content_type, request.ledger, request.id)
        except Exception as e:
            self._failed(request, e)
        else:
            self._answer(request, reply)

    def _together(self, requests: list[Request], seat: Seat) -> None:
        try:
            results = seat.predictor.predict_batch(requests)
        except Exception:  # a bug, or no memory for so many: each has a chance alone
            log.exception("model %s: %d requests failed together", requests[0].model, len(requests))
            for request in requests:
                request.ledger.batch_size = 1
                self._alone(request, seat)
            return
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, Exception):
                self._failed(request, result)
            else:
                self._answer(request, result)

    def _answer(self, request: Request, reply: bytes) -> None:
        if request.expired():
            self._refuse(request, "expired", f"the deadline passed in stage '{request.ledger.stage}'")
        else:
            request.reply(reply, "application/json")

    def _failed(self, request: Request, error: Exception) -> None:
        if isinstance(error, InputError):
            self._refuse(request, "invalid_input", str(error))
            return
        # A bug must cost the one message that found it, not the daemon.
        log.error("model %s: a request failed", request.model, exc_info=error)
        self._refuse(request, "internal", f"{type(error).__name__}: {error}")
