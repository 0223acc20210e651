"""A payload becomes a reply: decode, run, encode. Used by the daemon's workers and by ``int8d infer`` alike."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.engine import Batches, Engine
from agent.engine.observation import Observe, Observers
from agent.errors import InputError
from agent.serving.request import Ledger, Request
from agent.wire import kinds, oip, tensors
from agent.wire.limits import Limits

Array = NDArray[np.generic]
JSON = "application/json"
_SMALL = 64  # scores; below, Python's own arithmetic costs less than a handful of numpy's calls


class Predictor:
    """One model, by the name and version it is served under."""

    def __init__(
        self,
        engine: Engine,
        name: str = "",
        version: str = "",
        limits: Limits = Limits(),
        batches: Batches | None = None,
    ) -> None:
        header = engine.header
        self.engine, self.batches = engine, batches or Batches(engine)
        self._took: dict[int, float] = {}  # seconds of so many requests together, 2 or more: a moving average
        self.name, self.version = name or header.name, version or header.version
        self._limits = limits
        self._post = header.postprocess
        classes = engine.outputs[header.postprocess.output].shape[-1] if header.postprocess else 0
        self._labels = header.labels or tuple(map(str, range(classes)))
        self._only_input = next(iter(engine.inputs.values())) if len(engine.inputs) == 1 else None
        self._images = None
        if header.preprocess is not None:
            from agent.wire.images import ImageDecoder  # Pillow only where pictures are taken

            self._images = ImageDecoder(header.preprocess, engine.inputs[header.preprocess.input], limits)
        self._image_input = header.preprocess.input if header.preprocess else ""
        self.observe: Observe | None = None  # of each inference; may change between two

    def show(self, observe: Observe) -> None:
        """Has ``observe`` look at each inference from now on, beside those who do. From one thread at a time."""
        self.observe = Observers.together((*Observers.of(self.observe), observe))

    def hide(self, observe: Observe) -> None:
        """Ends ``show``; inferences under way may still be shown."""
        self.observe = Observers.together(tuple(o for o in Observers.of(self.observe) if o != observe))

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the classes, as replies have them; empty for what is no classifier."""
        return self._labels

    def predict(
        self,
        payload: bytes,
        content_type: str | None = None,
        ledger: Ledger | None = None,
        request_id: str | None = None,
    ) -> bytes:
        """The reply as JSON. Raises ``InputError`` for what can't be understood. Stamps the three compute stages."""
        ledger = ledger or Ledger()
        inputs, request_id = self._decode(payload, content_type, request_id, ledger)
        ledger.stamp("compute_input")
        outputs = self.engine.run(inputs)
        ledger.stamp("compute_infer")
        observe = self.observe
        if observe is not None:
            observe(inputs, outputs)
        return self._encode(outputs, request_id, ledger)

    def predict_batch(self, requests: Sequence[Request]) -> list[bytes | Exception]:
        """The reply of each request, or why it has none: an ``InputError``, or a bug. Stamps as ``predict``.

        Stages are those of the whole: the first is decoded when the last is.
        """
        begun = time.monotonic()
        results: list[bytes | Exception] = [b""] * len(requests)
        members: list[tuple[int, dict[str, Array], str | None]] = []
        for i, request in enumerate(requests):
            try:
                inputs, request_id = self._decode(request.payload, request.content_type, request.id, request.ledger)
                members.append((i, self.engine.check(inputs), request_id))
            except Exception as e:
                results[i] = e
        for i, _, _ in members:
            requests[i].ledger.batch_size = len(members)
            requests[i].ledger.stamp("compute_input")
        outputs = self.batches.run([inputs for _, inputs, _ in members])
        for i, _, _ in members:
            requests[i].ledger.stamp("compute_infer")
        observe = self.observe
        for (i, inputs, request_id), output in zip(members, outputs, strict=True):
            if observe is not None:
                observe(inputs, output)
            results[i] = self._encode(output, request_id, requests[i].ledger)
        taken, last = time.monotonic() - begun, self._took.get(len(requests))
        self._took[len(requests)] = taken if last is None else last + (taken - last) / 8
        return results

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many requests can run together, the largest first."""
        return self.batches.sizes

    def expected_s(self, n: int) -> float:
        """What ``n`` requests together will take: as they lately did, else what the engine took when it was timed."""
        return self._took.get(n) or self.batches.seconds(n)

    def _decode(
        self, payload: bytes, content_type: str | None, request_id: str | None, ledger: Ledger
    ) -> tuple[dict[str, Array], str | None]:
        if len(payload) > self._limits.max_payload_bytes:
            raise InputError(
                f"the payload has {len(payload)} bytes; at most {self._limits.max_payload_bytes} are taken "
                "(limits.max_payload_bytes)"
            )
        kind = kinds.kind_of(payload, content_type)
        if kind == "json":
            request, arrays = oip.decode(payload, kinds.json_size(content_type))
            stamp = request.parameters.get("source_timestamp_us")
            if isinstance(stamp, int) and ledger.source_unix_us is None:
                ledger.source_unix_us = stamp
            return arrays, request.id if request.id is not None else request_id
        if kind == "image":
            if self._images is None:
                raise InputError(f"model '{self.name}' takes no pictures: its file has no preprocessing")
            return {self._image_input: self._images.decode(payload)}, request_id
        info = self._only_input
        if info is None:
            raise InputError(f"model '{self.name}' has {len(self.engine.inputs)} inputs: send an inference request")
        array = tensors.from_npy(payload) if kind == "npy" else tensors.from_raw(payload, info)
        return {info.name: array}, request_id

    def _encode(self, outputs: dict[str, Array], request_id: str | None, ledger: Ledger) -> bytes:
        reply = oip.Reply(self.name, self.version, [oip.tensor_out(k, v) for k, v in outputs.items()], request_id)
        if self._post is not None:
            reply.classes = self._classes(outputs[self._post.output])
        ledger.stamp("compute_output")
        parameters = ledger.as_parameters()
        parameters["backend"] = self.engine.backend
        reply.parameters = parameters
        return oip.encode(reply)

    def _classes(self, output: Array) -> list[oip.ClassOut]:
        assert self._post is not None
        labels, k = self._labels, self._post.top_k
        row = output.reshape(-1, output.shape[-1])[0]
        top = best_few(row.tolist(), self._post.softmax, k) if row.size <= _SMALL else None
        if top is None:
            top = best(row, self._post.softmax, k)
        return [oip.ClassOut(labels[i], i, p) for i, p in top]


def best(row: Array, softmax: bool, k: int) -> list[tuple[int, float]]:
    """The k largest scores, or of their softmax, with their indices; of equal ones the first first, NaN last."""
    scores = row.astype(np.float64)
    if softmax:
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    order = np.argsort(-scores, kind="stable")[:k]
    return [(int(i), float(scores[i])) for i in order]


def best_few(scores: list[float], softmax: bool, k: int) -> list[tuple[int, float]] | None:
    """``best`` for a few scores; None where one is not finite."""
    if not math.isfinite(sum(scores)):
        return None
    if softmax:
        most = max(scores)
        scores = [math.exp(s - most) for s in scores]
        total = math.fsum(scores)
        scores = [s / total for s in scores]
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:k]
    return [(i, scores[i]) for i in order]


class _Id(msgspec.Struct):
    id: str | None = None


_id_decoder = msgspec.json.Decoder(_Id)


def request_id_of(payload: bytes) -> str | None:
    """The ``id`` of a request that could not be served, for its error reply; None where there is none to be read."""
    if payload[:1] != b"{":
        return None
    try:
        return _id_decoder.decode(payload).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
