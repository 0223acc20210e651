"""int8d.toml: every setting, its type and its default.

The structs below are the reference: a table of the file each, with the defaults. Unknown keys are errors. Paths are
relative to the folder that int8d is started in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from agent.files import state_folder
from agent.validate import Limits as ModelLimits
from agent.wire.limits import Limits


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Tls(Table, frozen=True):
    """``[broker.tls]``. ca: PEM file of the authority (default: the system's); cert, key: this device's own, PEM;
    min_version: the lowest version of TLS that is spoken.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    min_version: Literal["1.2", "1.3"] = "1.2"


class Broker(Table, frozen=True):
    """``[broker]``. Where the broker is, and how to talk to it.

    protocol: ``auto`` is MQTT 5, and 3.1.1 where the broker refuses it. client_id: default ``int8d-<device>``; it names
    the session, so it must stay the same over restarts. session_expiry_s: how long the broker keeps what arrives while
    the agent is away. receive_maximum: how many unacknowledged inputs the broker may have under way here; it is the
    back-pressure that keeps the rest in the broker. password_file: a file that holds the password alone,
    or ``credential:NAME`` of systemd.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    client_id: str = ""
    username: str | None = None
    password: str | None = None
    password_file: str | None = None
    tls: Tls | None = None
    keepalive_s: int = 30
    session_expiry_s: int = 86_400
    receive_maximum: int = 32
    connect_timeout_s: float = 5.0
    reconnect_min_s: float = 0.5
    reconnect_max_s: float = 30.0


class ModelConfig(Table, frozen=True):
    """``[[model]]``. A model file under a name; version: default, the file's own.

    threads: of an engine. replicas: engines, each with a worker. cores: where they run, shared out among the replicas;
    default: anywhere. max_batch: how many waiting requests may be computed together, where the model allows it and the
    tuner measured that it pays; 1 is one by one. batch_wait_us: how long a request may wait for others to come.
    ``int8d bench MODEL --sweep`` measures what is best here.
    """

    name: str
    path: str
    version: str = ""
    threads: int = 1
    backend: Literal["auto", "native", "torch"] = "auto"
    replicas: int = 1
    cores: list[int] = []
    max_batch: int = 16
    batch_wait_us: int = 0


class RouteConfig(Table, frozen=True):
    """``[[route]]``. Messages on a topic filter go to a model, replies to a topic.

    A topic belongs to one route: filters that share topics are errors, and so is a ``publish`` that some route would
    take in again. publish: ``{1}``, ``{2}`` … stand for what the filter's wildcards matched; used where a message
    brings no Response Topic of its own. deadline_ms: from the arrival here; a request's own ``timeout`` and the
    message's expiry count too, and the soonest holds. priority: 0..9, of requests that bring none; the higher is served
    sooner. overload: what happens past max_queue waiting messages; ``latest_per_source``
    keeps only the newest message of each topic. share: the group of a shared subscription. content_type: for messages
    that name none. encryption: ``hpke`` takes messages that were sealed for this device alone, and seals the replies;
    see ``Encryption``.
    outbox: whether replies go through ``[outbox]``; with qos 1.
    """

    subscribe: str
    model: str
    publish: str
    qos: Literal[0, 1] = 1
    deadline_ms: int | None = None
    priority: int = 0
    overload: Literal["reject", "drop_oldest", "latest_per_source"] = "reject"
    max_queue: int = 1000
    share: str | None = None
    content_type: str | None = None
    encryption: Literal["none", "hpke"] = "none"
    outbox: bool = False


class OutboxConfig(Table, frozen=True):
    """``[outbox]``. Where replies of routes with ``outbox = true`` are stored before they are published.

    path: default ``outbox.db`` in the device's state folder. max_bytes, max_age_s: past either, the oldest replies are
    dropped, counted and logged. replay_rate: replies of a backlog a second, at most; 0: as fast as the broker confirms.
    subscriber_wait_s: how long after a new connection replies wait for a subscriber (MQTT 5).
    """

    path: str = ""
    max_bytes: int = 268_435_456
    max_age_s: float = 604_800.0
    replay_rate: float = 0.0
    subscriber_wait_s: float = 10.0


class Tuner(Table, frozen=True):
    """``[tuner]``. Whether each model's kernels, and how many inputs it computes at once, are chosen by timing them
    here, once, when it is first loaded.

    budget_s: for a model's kernels, and again for its batches, at most. folder: where the answers are remembered;
    default ``tuner`` in the state folder that systemd gives, else ``int8d/tuner`` in ``$XDG_STATE_HOME`` or
    ``~/.local/state``.
    """

    enabled: bool = True
    budget_s: float = 3.0
    folder: str = ""


class Containment(Table, frozen=True):
    """``[containment]``. What a message may do to the daemon.

    max_strikes: an input under work at so many deaths of the process is not touched again, but goes to the dead-letter
    topic. hang_timeout_s: a request that computes for longer ends the process, so that whoever supervises it starts it
    again; keep it below the unit's WatchdogSec, which acts where even this can't. sync: force each strike to the disk,
    for inputs that take the whole machine down; costs a write of the disk for each message.
    """

    max_strikes: int = 2
    hang_timeout_s: float = 20.0
    sync: bool = False


class Http(Table, frozen=True):
    """``[http]``. The Open Inference Protocol, health and ``/metrics`` for callers on this box; no password, no TLS.

    host: another than a loopback address opens all of it to whoever reaches it. port: 0 is any that is free; the log
    names it. max_connections: open at once, a thread each; one more is answered 503. max_queue: of its requests, so
    many wait; less than max_connections, so that health is answered while all inferences wait. timeout_s: for a client
    to begin a request, to complete it, and to take the answer. How long a body may be says limits.max_payload_bytes.
    """

    enabled: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    max_connections: int = 16
    max_queue: int = 8
    max_header_bytes: int = 8192
    timeout_s: float = 10.0


class Drift(Table, frozen=True):
    """``[drift]``. Whether inputs and predictions still look like those recorded in the model file (docs/drift.md).

    every: one inference in so many is looked at, on average. window: how many of those the verdict is about. moderate,
    major: the population stability index from which on the verdict says so, chance apart.
    """

    enabled: bool = True
    window: int = 1000
    every: int = 20
    moderate: float = 0.1
    major: float = 0.25


class HomeAssistant(Table, frozen=True):
    """``[home_assistant]``. Whether the device shows up in Home Assistant by itself, by MQTT discovery.

    prefix: Home Assistant's own, as its MQTT integration is set. Switched off again, what was published is taken back.
    """

    enabled: bool = False
    prefix: str = "homeassistant"


class Sparkplug(Table, frozen=True):
    """``[sparkplug]``. Whether the device is a Sparkplug B edge node, too, named after ``device``, in ``group``.

    It takes a connection of its own, under ``broker.client_id`` with ``-sparkplug`` behind it.
    """

    enabled: bool = False
    group: str = "int8d"


class Encryption(Table, frozen=True):
    """``[encryption]``. For routes with ``encryption = "hpke"``; docs/security.md says what it holds against.

    key: the file with this device's private key (``int8d key new``), or ``credential:NAME``. senders: public keys of
    those whose messages are taken; empty: anybody's. infer: of the device's own infer topics.
    """

    key: str | None = None
    senders: list[str] = []
    infer: Literal["none", "hpke"] = "none"


class Updates(Table, frozen=True):
    """``[updates]``. Models over the air (docs/updates.md): whence, how fast, and what a release must hold up to.

    repository: the address that ``metadata/`` and ``targets/`` lie below: a URL, or with ``transport = "mqtt"`` the
    topic that ``int8d-make serve --mqtt`` was given. Empty: no updates. root: the file of the root role that is trusted
    at first. interval: seconds between checks; 0: only when told. device_group: takes releases for this group, too.
    ca, cert, cert_key: of the web server's TLS, as ``[broker.tls]``. key: this device's age identity (``int8d key new
    FILE --age``), or ``credential:NAME``; for encrypted releases. without_clock: what a clock behind the time that the
    repository has signed means: ``refuse`` all updates, or ``floor``, take that time for now.

    max_bytes: of a release. min_free_bytes: what stays free on the disk. max_bytes_per_s: 0, no limit. min_bytes_per_s:
    over ``stall_s``, else the repository counts as too slow. request_timeout_s: for one piece over MQTT, a connection
    over HTTPS.

    test_timeout_s: of the test before it is loaded, and of loading it. latency_budget_ms: of its median run in that
    test; 0: the shortest deadline of the model's routes. memory_budget_bytes: that loading and running it adds to a
    process; 0: no limit.
    shadow_s: how long it looks on at live inputs before it serves; min_agreement: with the model in service, 0..1.
    probation_s: how long it must serve well until it is committed: at most ``max_error_rate`` of its requests more
    failing than before, p99 at most ``max_slowdown`` times that of the one before. max_starts: of the process during
    probation, then the release goes back; or with a wish, then the wish is dropped. max_wishes: that wait, for one
    model; and for each, of messages that ask for them.
    """

    repository: str = ""
    root: str = ""
    transport: Literal["https", "mqtt"] = "https"
    interval: float = 3600.0
    device_group: str = ""
    ca: str | None = None
    cert: str | None = None
    cert_key: str | None = None
    key: str | None = None
    without_clock: Literal["refuse", "floor"] = "refuse"
    max_bytes: int = 1 << 30
    min_free_bytes: int = 64 << 20
    max_bytes_per_s: int = 0
    min_bytes_per_s: int = 1024
    stall_s: float = 30.0
    request_timeout_s: float = 10.0
    test_timeout_s: float = 120.0
    latency_budget_ms: float = 0.0
    memory_budget_bytes: int = 0
    shadow_s: float = 10.0
    min_agreement: float = 0.0
    probation_s: float = 60.0
    max_error_rate: float = 0.01
    max_slowdown: float = 2.0
    max_starts: int = 3
    max_wishes: int = 32


class Config(Table, frozen=True):
    """The whole file. ``device`` names this box in its topics, below ``prefix``.

    state_folder: what must survive a restart; default: what systemd gives, else ``int8d`` in ``$XDG_STATE_HOME`` or
    ``~/.local/state``. A folder named after the device lies in it.
    """

    device: str
    broker: Broker = Broker()
    model: list[ModelConfig] = []
    route: list[RouteConfig] = []
    limits: Limits = Limits()
    model_limits: ModelLimits = ModelLimits()
    tuner: Tuner = Tuner()
    outbox: OutboxConfig = OutboxConfig()
    containment: Containment = Containment()
    http: Http = Http()
    drift: Drift = Drift()
    home_assistant: HomeAssistant = HomeAssistant()
    sparkplug: Sparkplug = Sparkplug()
    encryption: Encryption = Encryption()
    updates: Updates = Updates()
    state_folder: str = ""
    prefix: str = "int8d"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    stats_interval_s: float = 5.0
    drain_timeout_s: float = 30.0
    reply_cache: int = 256  # replies kept, to answer a repeated request without computing it again
    spin_us: int = 50  # how long a worker thread of an engine spins before it sleeps

    @property
    def base(self) -> str:
        """The topic that all of this device's own topics lie below."""
        return f"{self.prefix}/{self.device}"

    @property
    def device_folder(self) -> Path:
        """Of what must survive a restart."""
        return Path(self.state_folder or state_folder()) / self.device

    @property
    def encrypted(self) -> bool:
        """Whether some topic takes encrypted messages."""
        return "hpke" in (self.encryption.infer, *(r.encryption for r in self.route))

    @property
    def confidential(self) -> frozenset[str]:
        """Models that take encrypted messages: of their inputs and predictions the broker's operator learns nothing."""
        if self.encryption.infer == "hpke":
            return frozenset(m.name for m in self.model)
        return frozenset(r.model for r in self.route if r.encryption == "hpke")
