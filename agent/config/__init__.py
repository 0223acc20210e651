"""int8d.toml as typed, validated settings."""

from agent.config.load import load, parse
from agent.config.tables import (
    Broker,
    Config,
    Containment,
    Drift,
    HomeAssistant,
    ModelConfig,
    OutboxConfig,
    RouteConfig,
    Sparkplug,
    Tls,
    Tuner,
)

__all__ = [
    "Broker",
    "Config",
    "Containment",
    "Drift",
    "HomeAssistant",
    "ModelConfig",
    "OutboxConfig",
    "RouteConfig",
    "Sparkplug",
    "Tls",
    "Tuner",
    "load",
    "parse",
]
