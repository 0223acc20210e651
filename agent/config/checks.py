"""What can't be told from a setting's type: ranges, names, files, and topics that would come back in for ever."""

from __future__ import annotations

import math
import re

import msgspec

from agent.config.tables import Config, Updates
from agent.errors import ConfigError
from agent.mqtt.routes import Filter, check_template, meet, published
from agent.repository import pieces
from agent.serving.lane import MAX_PRIORITY
from agent.validate import Limits as ModelLimits

_LONGEST_S = 86_400.0
_TAKEN = ("tuf", "models", "control", "floors.json")  # in the folder of updates, beside those of the models


def check(config: Config) -> None:
    """Raises ``ConfigError`` that names the key and what to do."""

    def require(holds: bool, why: str) -> None:
        if not holds:
            raise ConfigError(why)

    for key, name in (("device", config.device), *(("model.name", m.name) for m in config.model)):
        require(bool(re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name)), f"{key} '{name}': use 1-64 of A-Z a-z 0-9 _ . -")
    require(
        bool(re.fullmatch(r"[^+#$\x00-\x20][^+#\x00-\x1f]{,255}", config.prefix)),
        f"prefix '{config.prefix}' is not a topic of at most 256 characters",
    )
    broker = config.broker
    require(0 < broker.port < 65536, f"broker.port {broker.port} must lie in 1..65535")
    require(1 <= broker.receive_maximum <= 65535, "broker.receive_maximum must lie in 1..65535")
    require(broker.host != "", "broker.host is empty; name the broker's address")
    require(
        0 < broker.reconnect_min_s <= broker.reconnect_max_s <= _LONGEST_S,
        f"broker.reconnect_min_s and reconnect_max_s must lie in 0..{_LONGEST_S}, in this order",
    )
    require(0 < broker.connect_timeout_s <= _LONGEST_S, f"broker.connect_timeout_s must lie in 0..{_LONGEST_S}")
    require(1 <= broker.keepalive_s <= 65535, "broker.keepalive_s must lie in 1..65535")
    require(0 <= broker.session_expiry_s < 2**32, "broker.session_expiry_s must lie in 0..4294967295")
    require(not (broker.password and broker.password_file), "give broker.password or broker.password_file, not both")
    secret = broker.password is not None or broker.password_file is not None
    require(broker.username is not None or not secret, "broker.password needs a broker.username")
    if broker.tls is not None:
        require((broker.tls.cert is None) == (broker.tls.key is None), "broker.tls: give cert and key, or neither")
    for key, seconds in (("stats_interval_s", config.stats_interval_s), ("drain_timeout_s", config.drain_timeout_s)):
        require(0 < seconds <= _LONGEST_S, f"{key} must lie in 0..{_LONGEST_S}")
    require(config.reply_cache >= 0 and config.spin_us >= 0, "reply_cache and spin_us must be 0 or more")
    for key, value in msgspec.structs.asdict(config.limits).items():
        least = 0 if key in ("max_cached_bytes", "max_messages_per_s") else 1
        require(least <= value < 2**63, f"limits.{key} must be {least} or more")
    model_limits: dict[str, int] = msgspec.structs.asdict(config.model_limits)
    for key, value in model_limits.items():
        require(value > 0, f"model_limits.{key} must be above zero")
    for key in ("rank", "activations"):  # what the kernels can count
        most = msgspec.structs.asdict(ModelLimits())[key]
        require(model_limits[key] <= most, f"model_limits.{key} must be {most:,} at most")
    require(
        not config.encrypted or config.encryption.key is not None,
        'encryption.key is missing, and there are encrypted topics: make a key with "int8d key new FILE"',
    )
    require(0 < config.tuner.budget_s <= _LONGEST_S, f"tuner.budget_s must lie in 0..{_LONGEST_S}")
    outbox = config.outbox
    require(outbox.max_bytes > 0 and outbox.max_age_s > 0, "outbox.max_bytes and max_age_s must be above zero")
    require(outbox.replay_rate >= 0, "outbox.replay_rate must be 0 or more")
    require(0 <= outbox.subscriber_wait_s <= _LONGEST_S, f"outbox.subscriber_wait_s must lie in 0..{_LONGEST_S}")
    contain = config.containment
    require(1 <= contain.max_strikes <= 100, "containment.max_strikes must lie in 1..100")
    require(0 < contain.hang_timeout_s <= _LONGEST_S, f"containment.hang_timeout_s must lie in 0..{_LONGEST_S}")
    http = config.http
    require(http.host != "", "http.host is empty; name an address, for example 127.0.0.1")
    require(0 <= http.port < 65536, f"http.port {http.port} must lie in 0..65535")
    require(2 <= http.max_connections <= 10_000, "http.max_connections must lie in 2..10000")
    require(1 <= http.max_queue < http.max_connections, "http.max_queue must lie in 1..max_connections - 1")
    require(256 <= http.max_header_bytes <= 1 << 20, "http.max_header_bytes must lie in 256..1048576")
    require(0 < http.timeout_s <= _LONGEST_S, f"http.timeout_s must lie in 0..{_LONGEST_S}")
    drift = config.drift
    require(1 <= drift.window <= 1_000_000, "drift.window must lie in 1..1000000")
    require(1 <= drift.every <= 1_000_000, "drift.every must lie in 1..1000000")
    require(0 < drift.moderate <= drift.major < math.inf, "drift.moderate and major must be above zero, in this order")
    prefix = config.home_assistant.prefix
    require(bool(re.fullmatch(r"[^+#$\x00/][^+#\x00]*", prefix)), f"home_assistant.prefix '{prefix}' is not a topic")
    group = config.sparkplug.group
    require(bool(re.fullmatch(r"[^+#/$\x00][^+#/\x00]*", group)), f"sparkplug.group '{group}' must do without + # /")
    require(len(config.model) > 0, "no [[model]] is given; name at least one")
    names = [m.name for m in config.model]
    require(len(set(names)) == len(names), "two models have the same name")
    for model in config.model:
        require(1 <= model.threads <= 256, f"model '{model.name}': threads must lie in 1..256")
        require(1 <= model.replicas <= 64, f"model '{model.name}': replicas must lie in 1..64")
        require(1 <= model.max_batch <= 64, f"model '{model.name}': max_batch must lie in 1..64")
        require(0 <= model.batch_wait_us <= 10**6, f"model '{model.name}': batch_wait_us must lie in 0..1000000")
        cores = model.cores
        sound = len(set(cores)) == len(cores) and all(0 <= core < 4096 for core in cores)
        require(sound, f"model '{model.name}': cores are different numbers in 0..4095")
    for route in config.route:
        where = f"route '{route.subscribe}'"
        require(route.model in names, f"{where}: no model '{route.model}'; there are: {', '.join(names)}")
        require(route.max_queue > 0, f"{where}: max_queue must be above zero")
        require(route.deadline_ms is None or route.deadline_ms > 0, f"{where}: deadline_ms must be above zero")
        require(not route.outbox or route.qos == 1, f"{where}: outbox needs qos = 1")
        require(0 <= route.priority <= MAX_PRIORITY, f"{where}: priority must lie in 0..{MAX_PRIORITY}")
        require(route.share is None or bool(re.fullmatch(r"[^/+#]+", route.share)), f"{where}: share is not a name")
        require(not route.subscribe.startswith("$share/"), f'{where}: leave out $share/…/ and set share = "group"')
        check_template(route.publish, Filter(route.subscribe).wildcards, where)
    if config.updates.repository:
        for name in names:
            held = name not in _TAKEN and not name.startswith(".")
            require(held, f"model '{name}': updates need the name for themselves; choose another")
    _check_updates(config.updates)
    _check_topics(config)


def _check_updates(updates: Updates) -> None:
    """``[updates]``: whence, how fast, and the bounds of what a release may do."""

    def require(holds: bool, why: str) -> None:
        if not holds:
            raise ConfigError(f"updates.{why}")

    address = updates.repository
    if address:
        require(updates.root != "", "root is missing: name the file root.json that int8d-make keys init has made")
        if updates.transport == "mqtt":
            topic = pieces.is_repository(address) and "://" not in address
            require(topic, f"repository '{address}' is not a topic; for a URL, set transport = \"https\"")
        else:
            plain = re.match(r"http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)", address)
            secure = re.match(r"https://[^/?#\s@]+(/[^?#\s]*)?$", address)
            require(
                bool(plain or secure),
                f"repository '{address}' must begin with https:// (http:// only to this box); for a topic, set "
                'transport = "mqtt"',
            )
    require((updates.cert is None) == (updates.cert_key is None), "cert: give cert and cert_key, or neither")
    require(bool(re.fullmatch(r"[A-Za-z0-9_.-]{,64}", updates.device_group)), "device_group: use A-Z a-z 0-9 _ . -")
    seldom = updates.interval == 0 or 1 <= updates.interval <= 366 * _LONGEST_S
    require(seldom, f"interval must be 0 or lie in 1..{366 * _LONGEST_S:.0f}")
    for key in ("stall_s", "request_timeout_s", "test_timeout_s"):
        require(0 < getattr(updates, key) <= _LONGEST_S, f"{key} must lie in 0..{_LONGEST_S}")
    for key in ("shadow_s", "probation_s"):
        require(0 <= getattr(updates, key) <= 30 * _LONGEST_S, f"{key} must lie in 0..{30 * _LONGEST_S}")
    for key in ("min_free_bytes", "max_bytes_per_s", "min_bytes_per_s", "memory_budget_bytes"):
        require(0 <= getattr(updates, key) < 2**63, f"{key} must be 0 or more")
    require(1 <= updates.max_bytes < 2**63, "max_bytes must be 1 or more")
    limit = updates.max_bytes_per_s
    require(limit == 0 or limit >= updates.min_bytes_per_s, "max_bytes_per_s must be 0, or min_bytes_per_s or more")
    require(0 <= updates.latency_budget_ms < math.inf, "latency_budget_ms must be 0 or more")
    require(0 <= updates.min_agreement <= 1, "min_agreement must lie in 0..1")
    require(0 <= updates.max_error_rate <= 1, "max_error_rate must lie in 0..1")
    require(1 <= updates.max_slowdown < math.inf, "max_slowdown must be 1 or more")
    require(1 <= updates.max_starts <= 100, "max_starts must lie in 1..100")
    require(1 <= updates.max_wishes <= 1000, "max_wishes must lie in 1..1000")


def _check_topics(config: Config) -> None:
    """A topic that two routes take would be served twice by the first; one that is ours would come back for ever."""
    models = f"{config.base}/v2/models"
    taken = {f"route '{r.subscribe}'": Filter(r.subscribe).levels for r in config.route}
    if len(taken) < len(config.route):
        raise ConfigError("two routes have the same filter; a topic belongs to one route")
    own = {"the device's own infer topics": f"{models}/+/infer", "the device's own request topics":
           f"{models}/+/infer/request/#"}  # fmt: skip
    inputs = list(taken.items()) + [(name, text.split("/")) for name, text in own.items()]
    for i, (name, levels) in enumerate(inputs):
        for other, others in inputs[:i]:
            if meet(levels, others):
                raise ConfigError(f"{other} and {name} share topics; a topic belongs to one route, so narrow a filter")
    outputs = [(f"what route '{r.subscribe}' publishes", published(r.publish, Filter(r.subscribe)))
               for r in config.route]  # fmt: skip
    for topic in ("available", "stats", "v2/models/+/ready", "v2/models/+/infer/response/#"):
        outputs.append((f"the device's own '{config.base}/{topic}'", f"{config.base}/{topic}".split("/")))
    if config.home_assistant.enabled:
        topic = f"{config.home_assistant.prefix}/device/+/config"
        outputs.append((f"Home Assistant's '{topic}'", topic.split("/")))
    if config.sparkplug.enabled:
        outputs.append(("what Sparkplug publishes", f"spBv1.0/{config.sparkplug.group}/+/{config.device}".split("/")))
    if config.updates.repository and config.updates.transport == "mqtt":
        for way in (pieces.request_topic, pieces.reply_topic):
            topic = way(config.updates.repository, config.device)
            outputs.append((f"the repository's '{topic}'", topic.split("/")))
    for what, levels in outputs:
        for name, others in inputs:
            if meet(levels, others):
                raise ConfigError(f"{what} comes back in through {name}, for ever; choose another topic")
