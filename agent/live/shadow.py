"""A candidate looks on at live inputs of the model in service, before it serves.

    shadow = Shadow(candidate, in_service)       # a Predictor, and those of all replicas
    time.sleep(10)
    shadow.stop()
    shadow.report()                              # {"seen": 812.0, "agreement": 0.995, "errors": 0.0, ...}
    shadow.verdict(min_agreement=0.9)            # None, or the Refused to end the update with

A worker that has answered leaves its inputs and outputs in a queue of ``PLACES``, or drops them where that is full: it
waits for nothing. Nothing is copied either, for each inference decodes into arrays of its own and nobody writes to them
again. A thread of low priority runs the candidate on them and compares. What is timed there is the candidate at low
priority beside live traffic: its median tells something, its p99 mostly who else wanted the CPU.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np

from agent.engine.segment import Array
from agent.live.chance import tail
from agent.predict import Predictor
from agent.repository.reasons import Refused
from agent.telemetry.histogram import Histogram
from agent.updates.child import NICE

log = logging.getLogger(__name__)
PLACES = 2  # inferences that wait for the candidate
CLOSE = 0.01  # of the largest element: how far apart the elements of equal outputs lie, where there are no classes
REST_S = 0.002  # after a run, or as long as the run took: it has half a core at most, and the interpreter seldom
SURE = 0.01  # chance alone gives a true agreement of min_agreement away less often than this
_Inference = tuple[Mapping[str, Array], Mapping[str, Array]]


class Shadow:
    """Looks on from its making to ``stop``. in_service: the predictors of all replicas of the model that answers.

    Candidates keep their priority: only the calling thread of a run has a lower one, not an engine's other threads.
    """

    def __init__(self, candidate: Predictor, in_service: Sequence[Predictor]) -> None:
        self._candidate, self._in_service = candidate, list(in_service)
        self._offered: queue.SimpleQueue[_Inference | None] = queue.SimpleQueue()  # its put takes no lock
        self._lock = threading.Lock()
        self._seen = self._dropped = self._compared = self._agreed = self._errors = 0
        self._first_error = ""
        self._took = Histogram()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()
        for predictor in self._in_service:
            predictor.show(self._offer)

    def stop(self, timeout: float = 10.0) -> None:
        """Looks on no more. A run that does not end within ``timeout`` seconds counts as an error."""
        if self._stopping.is_set():
            return
        for predictor in self._in_service:
            predictor.hide(self._offer)
        self._stopping.set()
        self._offered.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._failed(f"a run has not ended within {timeout:g} s")
        else:
            self._in_service.clear()  # whoever keeps the report does not keep the engines

    def report(self) -> dict[str, float]:
        """seen: inferences that it ran or failed on; dropped: that passed meanwhile; errors; agreement: the share of
        equal answers, 0..1, and median_us and p99_us of a run, where there was one.
        """
        with self._lock:
            found = {"seen": float(self._seen), "dropped": float(self._dropped), "errors": float(self._errors)}
            if self._compared:
                median, p99 = self._took.percentiles(50, 99)
                found |= {"agreement": round(self._agreed / self._compared, 4),
                          "median_us": median / 1e3, "p99_us": p99 / 1e3}  # fmt: skip
            return found

    def verdict(self, min_agreement: float) -> Refused | None:
        """Why it must not serve. None where nothing speaks against it, as when there was no traffic.

        One error is enough. Agreement counts as too low where chance would seldom make it as low as it is.
        """
        with self._lock:
            seen, compared, agreed, errors, first = (
                self._seen, self._compared, self._agreed, self._errors, self._first_error
            )  # fmt: skip
        if errors:
            return Refused("shadow_errors", f"it failed on {errors} of {seen} live inputs; the first: {first}")
        if tail(compared - agreed, compared, 1 - min_agreement) < SURE:
            return Refused(
                "shadow_disagrees",
                f"it agreed with the model in service on {agreed} of {compared} live inputs "
                f"({agreed / compared:.1%}); updates.min_agreement is {min_agreement:.1%}",
            )
        return None

    def _offer(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """On a worker's thread."""
        if self._offered.qsize() < PLACES:
            self._offered.put((inputs, outputs))
        else:
            self._dropped += 1  # with several workers one may be lost; a lock would cost more than that is worth

    def _run(self) -> None:
        try:
            ours = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(ours, NICE))
        except OSError as e:
            log.warning("the shadow runs at normal priority: %s", e)
        while True:
            inference = self._offered.get()
            if inference is None or self._stopping.is_set():
                return
            begun = time.monotonic()
            self._look(*inference)
            del inference
            self._stopping.wait(max(REST_S, time.monotonic() - begun))

    def _look(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        begun = time.monotonic_ns()
        try:
            given = self._candidate.engine.run(inputs)
        except Exception as e:  # whatever it is, it is what a request would meet
            self._failed(f"{type(e).__name__}: {e}")
            return
        took = time.monotonic_ns() - begun
        broken = next((n for n, array in given.items() if not _finite(array)), None)
        if broken is not None and all(map(_finite, outputs.values())):
            self._failed(f"output '{broken}' has elements that are not finite")
            return
        same = self._same(given, outputs)
        with self._lock:
            self._seen += 1
            self._compared += 1
            self._agreed += same
            self._took.add(took)

    def _failed(self, why: str) -> None:
        with self._lock:
            self._seen += 1
            self._errors += 1
            self._first_error = self._first_error or why

    def _same(self, given: Mapping[str, Array], live: Mapping[str, Array]) -> bool:
        """Whether both give the same answer: the same label of the top class, and where they do not both have classes,
        each output of the model in service, as real values, to ``CLOSE``.
        """
        ours, theirs = self._candidate, self._in_service[0]
        if ours.labels and theirs.labels:
            return _top(ours, given) == _top(theirs, live)
        for name, array in live.items():
            if name not in given or given[name].shape != array.shape:
                return False
            a, step = _real(ours, name, given[name])
            b, other_step = _real(theirs, name, array)
            largest = float(np.abs(b).max(initial=0.0, where=np.isfinite(b)))
            near = max(CLOSE * largest, step, other_step)
            if not np.allclose(a, b, rtol=0.0, atol=near, equal_nan=True):
                return False
        return True


def _top(predictor: Predictor, outputs: Mapping[str, Array]) -> str:
    post = predictor.engine.header.postprocess
    assert post is not None
    output = outputs[post.output]
    return predictor.labels[int(output.reshape(-1, output.shape[-1])[0].argmax())]


def _real(predictor: Predictor, name: str, array: Array) -> tuple[Array, float]:
    """An output as real values, and how far apart two neighbouring ones lie; 0 for f32."""
    info = predictor.engine.outputs[name]
    if info.dtype == "f32":
        return array, 0.0
    return (array.astype(np.float64) - info.zero_point) * info.scale, info.scale


def _finite(array: Array) -> bool:
    return array.dtype != np.float32 or bool(np.isfinite(array).all())
