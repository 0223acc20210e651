"""The daemon: the only place where the parts are wired. Start, ready, watchdog, drain, stop.

Threads: one keeps the connection, receives and confirms; a worker for each replica computes; a timer watches
deadlines; the main thread publishes statistics, feeds the watchdog and waits for the signal to stop. The outbox, HTTP
and Sparkplug have their own where they are switched on.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import threading
import time

import msgspec

from agent import __version__
from agent.config import Config, load
from agent.errors import BackendError, ConfigError, ModelError
from agent.http.server import Server
from agent.http.v2 import Api
from agent.integrations.home_assistant import HomeAssistant
from agent.integrations.sparkplug import EdgeNode
from agent.journal import Journal
from agent.live.models import Models
from agent.live.service import LiveService
from agent.logs import Sparing, to_stdout
from agent.memory import give_back
from agent.mqtt.delivery import Delivery
from agent.mqtt.gate import Gate
from agent.mqtt.messages import SEALED, Incoming, Outgoing
from agent.mqtt.outbox import Outbox
from agent.mqtt.session import Session
from agent.notify import Notifier
from agent.predict import request_id_of
from agent.serving.admission import Admission
from agent.serving.lane import Lane
from agent.serving.request import Request
from agent.serving.strikes import Strikes
from agent.serving.worker import Workers
from agent.telemetry.drift import Drift
from agent.telemetry.sensors import Sensors
from agent.telemetry.stats import Stats
from agent.topics import published_by, routes_of, subscriptions_of
from agent.updates import updater
from agent.updates.control import Control
from agent.updates.remote import Remote
from agent.updates.status import Status
from agent.updates.steps import budgets_s
from agent.wire import oip

log = logging.getLogger(__name__)
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: systemd must not start it again
_PROPERTIES_BYTES = 256 * 1024  # of a packet beside its payload
_STORE_S = 2.0  # without a connection, replies can still be stored
_LOG_REFUSALS_S = 1.0  # one of each code in so many seconds: under overload the log would be the load
EXIT_HUNG = 70  # EX_SOFTWARE


def main(path: str) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit status. Raises ``ConfigError`` where it can't even begin."""
    config = load(path)
    to_stdout(config.log_level)
    try:
        daemon = Daemon(config)
    except (ModelError, BackendError) as e:
        raise ConfigError(str(e)) from e
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    daemon.run(stop)
    return 0


class Daemon:
    """Models loaded, parts wired; ``run`` serves."""

    def __init__(self, config: Config, notifier: Notifier | None = None) -> None:
        self._config = config
        self._notifier = notifier or Notifier()
        self._refusals_logged = Sparing(_LOG_REFUSALS_S)
        self._drift = Drift(config.drift)
        self._state = config.device_folder
        self._updates = updater.of(config) if config.updates.repository else None
        self._models = Models(config, self._drift, self._notifier, self._updates)
        self._stats = Stats({
            "device": config.device,
            "int8d": __version__,
            "models": {name: loaded.about() for name, loaded in self._models.loaded.items()},
        }, Sensors())  # fmt: skip
        self._admission = Admission(self._refuse, config.limits.max_queued_bytes)
        seats = self._models.seats()
        self._strikes = Strikes(
            self._state,
            workers=len(seats),
            most=config.containment.max_strikes,
            sync=config.containment.sync,
            release=self._release(),
        )
        self._worker = Workers(seats, self._admission, self._refuse, self._strikes)
        routes = routes_of(config)
        self._outbox = self._make_outbox() if any(r.outbox for r in routes) else None
        gate = Gate(config.limits, config.base, published_by(config))
        self._delivery = Delivery(
            routes,
            self._admission,
            self._stats,
            self._refuse,
            config.reply_cache,
            config.limits.max_cached_bytes,
            gate,
            self._outbox,
        )
        self._session = Session(
            config.broker,
            config.broker.client_id or f"int8d-{config.device}",
            subscriptions_of(config, routes),
            self._receive,
            self._announce,
            will=Outgoing(f"{config.base}/available", b"offline", 1, True),
            most=config.limits.max_payload_bytes + _PROPERTIES_BYTES,
            most_held=config.limits.max_queued_bytes,
        )
        self._delivery.attach(self._session)
        self._http = self._http_server() if config.http.enabled else None
        if self._outbox is not None:
            self._outbox.attach(self._session)
        self._home_assistant = HomeAssistant(config, self._models.headers, self._state)
        self._remote = None
        if self._updates is not None:
            session = self._session
            most = config.updates.max_wishes * len(config.model)
            self._remote = Remote(config.base, self._updates, session.publish, session.done, gate.reply_topic, most)
            self._control = Control(self._updates)
        self._edge_node = None
        if config.sparkplug.enabled:
            client_id = f"{config.broker.client_id or f'int8d-{config.device}'}-sparkplug"
            self._edge_node = EdgeNode(config.broker, client_id, config.sparkplug.group, config.device, self._state)

    def run(self, stop: threading.Event) -> None:
        """Serves until ``stop`` is set, then drains: finish, publish, acknowledge, say offline."""
        _settle()
        self._worker.start()
        self._session.start()
        if self._http is not None:
            self._http.start()
        if self._edge_node is not None:
            self._edge_node.update(self._document())
            self._edge_node.start()
        self._notifier.send("READY=1")
        self._tell_status()
        log.info("serving %s", ", ".join(self._models.predictors))
        if self._updates is not None:
            live = LiveService(
                self._models, self._worker, self._stats, self._config, self._changed, budgets_s(self._config)
            )
            self._updates.start(live, self._tell_update)
        interval = self._config.stats_interval_s
        watchdog = self._notifier.watchdog_s
        hung_s = self._config.containment.hang_timeout_s
        tick = min(interval, hung_s / 4, watchdog / 3 if watchdog else interval)
        next_stats = time.monotonic()
        while not stop.is_set():
            # Fed by progress, not by this thread being awake: a hung kernel must not look alive.
            if self._worker.stuck_for() > hung_s:
                self._give_up(hung_s)
            if watchdog and self._progresses():
                self._notifier.send("WATCHDOG=1")
            if time.monotonic() >= next_stats:
                next_stats = time.monotonic() + interval
                self._publish_stats()
                self._tell_status()
            stop.wait(min(tick, max(0.01, next_stats - time.monotonic())))
        self._drain()

    def _progresses(self) -> bool:
        """Whether no request takes too long: what feeds the watchdog, and ``/v2/health/live``."""
        watchdog = self._notifier.watchdog_s
        return self._worker.stuck_for() < (watchdog / 2 if watchdog else self._config.containment.hang_timeout_s)

    def _http_server(self) -> Server:
        api = Api(
            __version__,
            self._models.predictors,
            self._admission,
            Lane("http", self._config.http.max_queue),
            self._stats,
            self._refuse,
            alive=self._progresses,
            ready=lambda: not self._delivery.draining,
            connected=lambda: self._session.connected,
            drift=self._drift.snapshot,
            outbox=lambda: {} if self._outbox is None else self._outbox.stats(),
            updates=lambda: {} if self._updates is None else {s.model: s for s in self._updates.statuses()},
        )
        limits = self._config.limits
        return Server(self._config.http, api.handle, limits.max_payload_bytes, limits.max_queued_bytes)

    def _give_up(self, after_s: float) -> None:
        """A hung kernel or decoder can't be ended alone. The next process gets what was not answered again, and knows
        by the strike which input it was.
        """
        log.critical("a request computes for more than %g s (containment.hang_timeout_s): the process ends", after_s)
        faulthandler.dump_traceback()
        os._exit(EXIT_HUNG)

    def _drain(self) -> None:
        log.info("draining: %d requests wait", len(self._admission))
        self._notifier.send("STOPPING=1")
        self._delivery.draining = True
        until = time.monotonic() + self._config.drain_timeout_s

        def left() -> float:
            return max(0.0, until - time.monotonic())

        if self._updates is not None:
            self._control.close()
            self._updates.stop(left() / 2)
        finished = self._worker.stop(left())
        if self._http is not None:
            self._http.stop(left())
        patience = left() if self._session.connected else min(left(), _STORE_S) if self._outbox is not None else 0
        quiet = self._delivery.quiet(patience)
        if self._outbox is not None:
            self._outbox.quiet(left())
        if not (finished and quiet):
            log.warning("stopped before all was answered; the broker will deliver the rest to the next start")
        if self._session.connected:
            told = threading.Event()
            self._publish_stats()
            for name in self._models.predictors:
                self._session.publish(Outgoing(self._ready_topic(name), b"false", 1, True))
            self._session.publish(Outgoing(f"{self._config.base}/available", b"offline", 1, True),
                                  lambda reason: told.set())  # fmt: skip
            told.wait(min(5.0, left() + 1))
        self._session.stop()
        if self._outbox is not None:
            self._outbox.close()
        if self._edge_node is not None:
            self._edge_node.stop()
        self._admission.close()
        self._strikes.close()
        log.info("stopped")

    def _make_outbox(self) -> Outbox:
        wanted = self._config.outbox
        path = wanted.path or self._state / "outbox.db"
        return Outbox(
            lambda dropped: Journal(path, wanted.max_bytes, wanted.max_age_s, drop_oldest=True, dropped=dropped),
            wanted.replay_rate,
            wanted.subscriber_wait_s,
        )

    def _receive(self, message: Incoming) -> None:
        """On the network thread."""
        if self._remote is None or self._delivery.draining or not self._remote.take(message):
            self._delivery.receive(message)

    def _tell_update(self, status: Status) -> None:
        assert self._remote is not None
        self._remote.tell(status)
        self._control.tell(status)

    def _release(self) -> str:
        """What runs here: this program, and the versions of its models."""
        return f"{__version__} {' '.join(f'{p.name}={p.version}' for p in self._models.predictors.values())}"

    def _changed(self, name: str) -> None:
        """Another release of a model serves."""
        self._strikes.renew(self._release())
        log.info("model %s: version %s serves", name, self._models.predictors[name].version)
        self._publish_stats()
        if self._session.connected:
            self._home_assistant.announce(self._session.publish, msgspec.json.decode(self._document()))

    def _announce(self) -> None:
        """On every connection: the retained topics that say what is here, and what waited for one."""
        if self._outbox is not None:
            self._outbox.connected()
        self._session.publish(Outgoing(f"{self._config.base}/available", b"online", 1, True))
        for name in self._models.predictors:
            self._session.publish(Outgoing(self._ready_topic(name), b"true", 1, True))
        self._publish_stats()
        self._home_assistant.announce(self._session.publish, msgspec.json.decode(self._document()))
        if self._remote is not None:
            self._remote.announce()
        self._tell_status()
        log.info("connected over MQTT %s", self._session.version)

    def _tell_status(self) -> None:
        """The line that ``systemctl status`` shows."""
        session, broker = self._session, self._config.broker
        connection = f"connected over MQTT {session.version}" if session.connected else "no connection"
        self._notifier.send(f"STATUS={connection}: broker {broker.host}:{broker.port}")

    def _publish_stats(self) -> None:
        document = self._document()
        if self._session.connected:
            self._session.publish(Outgoing(f"{self._config.base}/stats", document, 0, True))
        if self._edge_node is not None:
            self._edge_node.update(document)

    def _document(self) -> bytes:
        outbox = {} if self._outbox is None else {"outbox": self._outbox.stats()}
        drift = self._drift.published(self._config.confidential)
        return self._stats.document(
            protocol=self._session.version,
            queued=len(self._admission),
            strikes_counted=self._strikes.working,
            drift=drift,
            **outbox,
        )

    def _ready_topic(self, model: str) -> str:
        return f"{self._config.base}/v2/models/{model}/ready"

    def _refuse(self, request: Request, code: str, message: str) -> None:
        if not request.settle():
            return
        request.refusal = code
        self._stats.refused(code, request.model)
        line = self._refusals_logged.line(code, f"refused a message on '{request.source}': {code}: {message}")
        if line:
            log.info("%s", line)
        if code == "poisoned":
            self._put_aside(request, message)
        request_id = request.id if request.id is not None else request_id_of(request.payload)
        request.answer(oip.error(code, message, request_id), "application/json", request)

    def _put_aside(self, request: Request, message: str) -> None:
        """The input itself to the dead-letter topic, before the sender is told."""
        about = (("reason", message), ("source_topic", request.source), ("model", request.model),
                 ("strikes", str(self._strikes.count(request.digest))))  # fmt: skip
        payload, correlation = request.sealed or (request.payload, None)
        content_type = SEALED if request.sealed else request.content_type
        self._session.publish(
            Outgoing(f"{self._config.base}/dead-letter", payload, 1, False, correlation, None, content_type, about)
        )


def _settle() -> None:
    """After loading: gives back what only the tuner needed, and has the garbage collector pass over the rest from now
    on, which would cost a request 10 ms now and then.
    """
    give_back()
    gc.freeze()
