"""The Open Inference Protocol's paths, and ``/metrics``: what is answered to which request.

An inference becomes a ``Request`` of the same queue as messages', so that deadlines, overload and strikes hold for it,
too. Errors are ``{"error": "…", "code": "…"}``, the code being the one of a reply over MQTT.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import msgspec

from agent.engine import TensorInfo
from agent.http.message import Head, Response
from agent.http.server import failure
from agent.predict import Predictor
from agent.serving.admission import Admission
from agent.serving.lane import Lane
from agent.serving.request import Request
from agent.telemetry import metrics, prometheus
from agent.telemetry.stats import Stats
from agent.updates.status import Status
from agent.wire import oip

STATUS = {
    "invalid_input": 400, "unknown_model": 404, "overloaded": 429, "superseded": 429, "expired": 504, "poisoned": 422,
    "internal": 500,
}  # fmt: skip
_DATATYPES = {"u8": "UINT8", "s8": "INT8", "s32": "INT32", "f32": "FP32"}
_UNNAMED = ("", "application/x-www-form-urlencoded")  # curl's word for bytes that it was told nothing of


class Api:
    """``handle`` answers a request; it is safe to call from many threads.

    refuse(request, code, message) answers a request with an error. alive(): the workers make progress; ready(): what
    comes is served; connected(): to the broker; drift(): ``Drift.snapshot``; outbox(): ``Outbox.stats``, or empty;
    updates(): where they stand, by model.
    """

    def __init__(
        self,
        version: str,
        models: Mapping[str, Predictor],
        admission: Admission,
        lane: Lane,
        stats: Stats,
        refuse: Callable[[Request, str, str], None],
        alive: Callable[[], bool],
        ready: Callable[[], bool],
        connected: Callable[[], bool],
        drift: Callable[[], Mapping[str, Mapping[str, Any]]],
        outbox: Callable[[], Mapping[str, Any]],
        updates: Callable[[], Mapping[str, Status]] = dict,
    ) -> None:
        self._version, self._models, self._admission, self._lane = version, models, admission, lane
        self._stats, self._refuse = stats, refuse
        self._alive, self._ready, self._connected = alive, ready, connected
        self._drift, self._outbox, self._updates = drift, outbox, updates

    def handle(self, head: Head, body: bytes) -> Response:
        """The answer."""
        match head.path.strip("/").split("/"):
            case ["metrics"]:
                return _get(head, self._metrics)
            case ["v2"]:
                return _get(head, lambda: _json(self._server()))
            case ["v2", "health", "live"]:
                return _get(head, lambda: _health("live", self._alive()))
            case ["v2", "health", "ready"]:
                return _get(head, lambda: _health("ready", self._ready()))
            case ["v2", "models", model, *rest]:
                return self._model(head, body, model, rest)
        return failure(404, f"there is no '{head.path}' here; see /v2 and /metrics")

    def _model(self, head: Head, body: bytes, model: str, rest: list[str]) -> Response:
        version = None
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            return self._infer(head, body, model, version)
        if rest not in ([], ["ready"]):
            return failure(404, f"there is no '{head.path}' here; a model has '', 'ready' and 'infer'")
        why = self._unknown(model, version)
        if why is not None:
            return failure(404, why, "unknown_model")
        if rest:
            return _get(head, lambda: _health("ready", self._ready()))
        return _get(head, lambda: _json(self._described(model)))

    def _unknown(self, model: str, version: str | None) -> str | None:
        """Why there is no such model, if so."""
        if model not in self._models:
            return f"no model '{model}'; there are: {', '.join(self._models)}"
        if version is not None and version != self._models[model].version:
            return f"no version '{version}' of model '{model}'; there is: {self._models[model].version}"
        return None

    def _server(self) -> dict[str, Any]:
        return {"name": "int8d", "version": self._version, "extensions": ["binary_tensor_data"]}

    def _described(self, model: str) -> dict[str, Any]:
        found = self._models[model]

        def tensors(infos: Mapping[str, TensorInfo]) -> list[dict[str, Any]]:
            return [{"name": n, "datatype": _DATATYPES[i.dtype], "shape": list(i.shape)} for n, i in infos.items()]

        return {"name": model, "versions": [found.version], "platform": "int8d", "inputs": tensors(found.engine.inputs),
                "outputs": tensors(found.engine.outputs)}  # fmt: skip

    def _metrics(self) -> Response:
        text = metrics.page(
            self._stats, len(self._admission), self._connected(), self._drift(), self._outbox(), self._updates()
        )
        return Response(200, text, prometheus.CONTENT_TYPE)

    def _infer(self, head: Head, body: bytes, model: str, version: str | None) -> Response:
        if head.method != "POST":
            return failure(405, f"an inference is asked for with POST, not {head.method}", allow="POST")
        if not self._ready():
            return failure(503, "the agent is about to stop", "overloaded", retry_after="1")
        self._stats.count("received")
        replies: list[bytes] = []
        answered = threading.Event()

        def answer(payload: bytes, content_type: str, request: Request) -> None:
            replies.append(payload)
            answered.set()

        content_type, why = _content_type(head, body)
        request = Request(body, model, answer, content_type, source="http", priority=self._lane.priority)
        why = why or self._wishes(request, head)
        unknown = self._unknown(model, version)
        if unknown is not None:
            self._refuse(request, "unknown_model", unknown)
        elif why is not None:
            self._refuse(request, "invalid_input", why)
        else:
            self._admission.put(request, self._lane)
        answered.wait()
        if request.refusal is not None:
            return _failed(request.refusal, replies[0])
        return Response(200, replies[0], sent=lambda whether: self._count(request, whether))

    def _wishes(self, request: Request, head: Head) -> str | None:
        """Takes over ``timeout`` (microseconds) and ``priority``, from the query or else from the JSON; or says why it
        can't.
        """
        asked = oip.wishes(request.payload) if request.payload[:1] == b"{" else oip.Wishes()
        timeout, priority = asked.timeout, asked.priority
        if head.query:
            query = parse_qs(head.query)
            try:
                timeout = int(query["timeout"][-1][:15]) if "timeout" in query else timeout
                priority = int(query["priority"][-1][:15]) if "priority" in query else priority
            except ValueError:
                return "timeout is a number of microseconds, priority one of 0..9"
        request.wish(timeout, priority)
        return None

    def _count(self, request: Request, sent: bool) -> None:
        if sent:
            request.ledger.stamp("publish")
            self._stats.answered(request.model, request.ledger)
        else:
            self._stats.count("publish_failed")


def _content_type(head: Head, body: bytes) -> tuple[str | None, str | None]:
    """The payload's content type, or why there is none. KServe's field for binary tensors becomes ``json-size``; its 0
    stands for one bare tensor, as with Triton.
    """
    named = head.fields.get("content-type", "")
    size = head.fields.get("inference-header-content-length")
    if size is not None:
        if not (size.isascii() and size.isdigit() and len(size) < 19 and int(size) <= len(body)):
            return None, f"Inference-Header-Content-Length '{size[:40]}' does not lie in 0..{len(body)}"
        return (f"application/json; json-size={size}" if int(size) else "application/octet-stream"), None
    return (None if named.split(";")[0].strip().lower() in _UNNAMED else named), None


def _failed(code: str, reply: bytes) -> Response:
    document = msgspec.json.decode(reply)
    retry = {"retry_after": "1"} if STATUS.get(code) == 429 else {}
    return failure(STATUS.get(code, 500), document["error"]["message"], code, document.get("id"), **retry)


def _get(head: Head, make: Callable[[], Response]) -> Response:
    if head.method not in ("GET", "HEAD"):
        return failure(405, f"'{head.path}' is read with GET, not {head.method}", allow="GET, HEAD")
    return make()


def _json(document: dict[str, Any]) -> Response:
    return Response(200, msgspec.json.encode(document))


def _health(name: str, holds: bool) -> Response:
    return Response(200 if holds else 503, msgspec.json.encode({name: holds}))
