"""What is computed together: requests for one model that wait one behind the other, as many as pay and no deadline
forbids.

Nothing is waited for unless the model says so. A run has one of the sizes that the tuner found worthwhile; what is
left over runs one by one. An input with a strike runs alone, so that if it brings the process down again, it alone is
struck.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.serving.admission import Admission
from agent.serving.request import Ledger, Request
from agent.serving.strikes import Strikes


class Predicts(Protocol):
    """What is asked of ``agent.predict.Predictor``."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the runs that there are, the largest first; 1 is the last."""
        ...

    def predict(
        self, payload: bytes, content_type: str | None, ledger: Ledger | None, request_id: str | None
    ) -> bytes: ...

    def predict_batch(self, requests: Sequence[Request]) -> list[bytes | Exception]: ...

    def expected_s(self, n: int) -> float: ...


@dataclass(frozen=True)
class Seat:
    """A model as one worker serves it. cores: where, or anywhere. wait_s: how long a batch may wait to be full, from
    the arrival of its first.
    """

    predictor: Predicts
    cores: frozenset[int] | None = None
    wait_s: float = 0.0


class Batcher:
    """Takes what follows a request out of the queue, and deals it out in runs. Shared by all workers."""

    def __init__(self, admission: Admission, strikes: Strikes, workers: int) -> None:
        self._admission, self._strikes, self._workers = admission, strikes, workers

    def gather(self, first: Request, seat: Seat) -> list[Request]:
        """``first``, and what comes next in the queue for the same model, up to the largest run that it fills.

        With several workers each takes its share of what waits.
        """
        predictor, gathered = seat.predictor, [first]
        least = predictor.sizes[-2] if len(predictor.sizes) > 1 else 0
        until = first.ledger.received / 1e9 + seat.wait_s if seat.wait_s else 0.0
        waiting = -(-(1 + len(self._admission)) // self._workers)
        if not least or (waiting < least and not until) or self._strikes.count(first.digest):
            return gathered
        most = predictor.sizes[0] if until else next((n for n in predictor.sizes if n <= waiting), 1)
        soonest = first.deadline
        while len(gathered) < most:
            now = time.monotonic()
            slack = (until if soonest is None else min(until, soonest / 1e9 - predictor.expected_s(most))) - now
            if soonest is not None and now + predictor.expected_s(len(gathered) + 1) > soonest / 1e9:
                break
            request = self._admission.take_same(first.model, slack)
            if request is None:
                break
            gathered.append(request)
            if request.deadline is not None:
                soonest = request.deadline if soonest is None else min(soonest, request.deadline)
        return gathered

    def next_run(self, gathered: list[Request], seat: Seat) -> list[Request]:
        """Takes the requests of the next run off the front of ``gathered``; empty once all are answered."""
        while gathered and gathered[0].settled:
            del gathered[0]
        if not gathered:
            return []
        struck = next((i for i, r in enumerate(gathered) if self._strikes.count(r.digest)), len(gathered))
        size = next(n for n in seat.predictor.sizes if n == 1 or (n <= struck and self._in_time(gathered[:n], seat)))
        run = gathered[:size]
        del gathered[:size]
        return run

    def _in_time(self, requests: list[Request], seat: Seat) -> bool:
        """Whether they can run together without one missing a deadline that it would keep alone."""
        now, predictor = time.monotonic(), seat.predictor
        alone, together = now + predictor.expected_s(1), now + predictor.expected_s(len(requests))
        return all(r.deadline is None or r.deadline / 1e9 < alone or r.deadline / 1e9 >= together for r in requests)
