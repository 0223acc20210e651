"""How large an input may be. Checked before anything is decoded or allocated."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[limits]`` table of int8d.toml.

    max_payload_bytes: of one message. max_pixels: of one picture, before decoding. max_queued_bytes: of
    all payloads that wait for a worker. max_cached_bytes: of all replies kept to answer a repeated request.
    max_topic_length: characters. max_user_properties: of one message. max_property_bytes: of one message's Response
    Topic, Correlation Data, Content Type and user properties. max_messages_per_s: from one topic; 0: not limited.
    max_burst: so many at once. max_sources: topics whose rates are kept apart; further ones share a rate.
    """

    max_payload_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 25_000_000
    max_queued_bytes: int = 64 * 1024 * 1024
    max_cached_bytes: int = 16 * 1024 * 1024
    max_topic_length: int = 1024
    max_user_properties: int = 64
    max_property_bytes: int = 16 * 1024
    max_messages_per_s: float = 0.0
    max_burst: int = 32
    max_sources: int = 4096
