"""What a message may be before anybody looks into it: its sizes, its rate, and where it may send its reply."""

from __future__ import annotations

from collections.abc import Sequence

from agent.mqtt.messages import Incoming
from agent.mqtt.routes import Filter, can_publish
from agent.serving.rate import RateLimit
from agent.wire.limits import Limits

_TOPICS_REMEMBERED = 4096


class Gate:
    """``base``: the device's own topic. published: filters of what the routes publish."""

    def __init__(self, limits: Limits = Limits(), base: str = "", published: Sequence[Filter] = ()) -> None:
        self._limits = limits
        self._rate = None
        if limits.max_messages_per_s:
            self._rate = RateLimit(limits.max_messages_per_s, limits.max_burst, limits.max_sources)
        self._ours = [Filter(f"{base}/#"), *published] if base else list(published)
        self._clients = f"{base}/clients/"
        self._known: dict[str, bool] = {}

    def refusal(self, message: Incoming) -> tuple[str, str] | None:
        """Code and message of the error that the message is answered with; None for one that may pass."""
        limits = self._limits
        size = len(message.payload) + message.missing
        if size > limits.max_payload_bytes:
            return _too_much("the payload has {} bytes", size, "max_payload_bytes", limits.max_payload_bytes)
        if len(message.topic) > limits.max_topic_length:
            return _too_much("the topic has {} characters", len(message.topic), "max_topic_length",
                             limits.max_topic_length)  # fmt: skip
        user = message.user
        if len(user) > limits.max_user_properties:
            return _too_much("the message has {} user properties", len(user), "max_user_properties",
                             limits.max_user_properties)  # fmt: skip
        size = len(message.response_topic or "") + len(message.correlation or b"") + len(message.content_type or "")
        if user:
            size += sum(map(len, user)) + sum(map(len, user.values()))
        if size > limits.max_property_bytes:
            return _too_much("the message's properties have {} bytes", size, "max_property_bytes",
                             limits.max_property_bytes)  # fmt: skip
        if self._rate is not None and not self._rate.allow(message.topic):
            return "rate_limited", (
                f"more than {limits.max_messages_per_s:g} messages a second came on this topic "
                "(limits.max_messages_per_s)"
            )
        return None

    def reply_topic(self, message: Incoming) -> str | None:
        """The message's Response Topic, if it has one that may be published to.

        Not a topic of the device's own, but for its clients' below ``clients/``, nor one that a route publishes to: the
        reply goes out with the device's rights, and would pass for what the device says by itself.
        """
        topic = message.response_topic
        if topic is None:
            return None
        try:
            return topic if self._known[topic] else None
        except KeyError:
            pass
        allowed = can_publish(topic) and (
            topic.startswith(self._clients) or not any(f.match(topic) is not None for f in self._ours)
        )
        if len(topic) <= self._limits.max_topic_length:
            if len(self._known) >= _TOPICS_REMEMBERED:
                self._known.clear()
            self._known[topic] = allowed
        return topic if allowed else None


def _too_much(what: str, size: int, name: str, most: int) -> tuple[str, str]:
    return "invalid_input", f"{what.format(size)}; at most {most} are taken (limits.{name})"
