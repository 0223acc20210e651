"""A payload becomes a reply: decode, run, encode. Used by the daemon's workers and by ``int8d infer`` alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.engine import Engine
from agent.errors import InputError
from agent.serving.request import Ledger
from agent.wire import kinds, oip, tensors
from agent.wire.limits import Limits

Array = NDArray[np.generic]
JSON = "application/json"


class Predictor:
    """One model, by the name and version it is served under."""

    def __init__(self, engine: Engine, name: str = "", version: str = "", limits: Limits = Limits()) -> None:
        header = engine.header
        self.engine = engine
        self.name, self.version = name or header.name, version or header.version
        self._limits = limits
        self._post, self._labels = header.postprocess, header.labels
        self._images = None
        if header.preprocess is not None:
            from agent.wire.images import ImageDecoder  # Pillow only where pictures are taken

            self._images = ImageDecoder(header.preprocess, engine.inputs[header.preprocess.input], limits)
        self._image_input = header.preprocess.input if header.preprocess else ""
        self.observe: Callable[[Mapping[str, Array], Mapping[str, Array]], None] | None = None  # of each inference

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
        if self.observe is not None:
            self.observe(inputs, outputs)
        reply = oip.Reply(self.name, self.version, [oip.tensor_out(k, v) for k, v in outputs.items()], request_id)
        if self._post is not None:
            reply.classes = self._classes(outputs[self._post.output])
        ledger.stamp("compute_output")
        reply.parameters = ledger.as_parameters() | {"backend": self.engine.backend}
        return oip.encode(reply)

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
            request, arrays = oip.decode(payload)
            stamp = request.parameters.get("source_timestamp_us")
            if isinstance(stamp, int) and ledger.source_unix_us is None:
                ledger.source_unix_us = stamp
            return arrays, request.id if request.id is not None else request_id
        if kind == "image":
            if self._images is None:
                raise InputError(f"model '{self.name}' takes no pictures: its file has no preprocessing")
            return {self._image_input: self._images.decode(payload)}, request_id
        if len(self.engine.inputs) != 1:
            raise InputError(f"model '{self.name}' has {len(self.engine.inputs)} inputs: send an inference request")
        name, info = next(iter(self.engine.inputs.items()))
        array = tensors.from_npy(payload) if kind == "npy" else tensors.from_raw(payload, info)
        return {name: array}, request_id

    def _classes(self, output: Array) -> list[oip.ClassOut]:
        assert self._post is not None
        scores = output.reshape(-1, output.shape[-1])[0].astype(np.float64)
        if self._post.softmax:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        top = np.argsort(-scores, kind="stable")[: self._post.top_k]
        return [oip.ClassOut(self._labels[i] if self._labels else str(i), int(i), float(scores[i])) for i in top]


def request_id_of(payload: bytes) -> str | None:
    """The ``id`` of a request that could not be served, for its error reply; None where there is none to be read."""

    class _Id(msgspec.Struct):
        id: str | None = None

    if payload[:1] != b"{":
        return None
    try:
        return msgspec.json.decode(payload, type=_Id).id
    except (msgspec.DecodeError, RecursionError):
        return None
