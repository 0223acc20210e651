"""What int8d.toml makes of topics: the routes that inputs come in by, what is subscribed to, what is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.config import Config
from agent.mqtt.delivery import Route
from agent.mqtt.routes import Filter, filter_of, published
from agent.serving.lane import Lane

if TYPE_CHECKING:
    from agent.wire.sealed import Receiver


def routes_of(config: Config) -> list[Route]:
    """The file's routes, then the device's own topics of the Open Inference Protocol."""
    receiver = _receiver(config)
    routes = [
        Route(
            Filter(r.subscribe), r.model, r.publish, Lane(r.subscribe, r.max_queue, r.overload, r.priority), r.qos,
            r.deadline_ms, r.content_type, receiver=receiver if r.encryption == "hpke" else None, outbox=r.outbox,
        )
        for r in config.route
    ]  # fmt: skip
    models = f"{config.base}/v2/models"
    lane = Lane("infer")
    opens = receiver if config.encryption.infer == "hpke" else None
    routes.append(Route(Filter(f"{models}/+/infer"), "{1}", models + "/{1}/infer/response", lane, receiver=opens))
    # For MQTT 3.1.1, which has no correlation data: the id travels in the topic, with a client's name before it or not.
    routes.append(
        Route(
            Filter(f"{models}/+/infer/request/#"), "{1}", models + "/{1}/infer/response/{2}", lane, id_wildcard=2,
            receiver=opens,
        )
    )  # fmt: skip
    return routes


def subscriptions_of(config: Config, routes: list[Route]) -> list[tuple[str, int]]:
    """(filter, qos) of each route, shared where the file says so, and of what asks for updates."""
    shares = {r.subscribe: f"$share/{r.share}/{r.subscribe}" for r in config.route if r.share}
    wanted = [(shares.get(r.filter.text, r.filter.text), r.qos) for r in routes]
    if config.updates.repository:
        wanted.append((f"{config.base}/v2/repository/models/+/load", 1))
    return wanted


def published_by(config: Config) -> list[Filter]:
    """What the file's routes publish to."""
    return [Filter(filter_of(published(r.publish, Filter(r.subscribe)))) for r in config.route]


def _receiver(config: Config) -> Receiver | None:
    """What opens encrypted messages. Raises ``ConfigError`` for keys that can't be used."""
    if not config.encrypted or config.encryption.key is None:
        return None
    from agent.wire import keys
    from agent.wire.sealed import Receiver

    return Receiver(keys.load(config.encryption.key), [keys.parse_public(text) for text in config.encryption.senders])
