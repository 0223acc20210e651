"""int8d.toml as typed, validated settings."""

from agent.config.load import load, parse
from agent.config.tables import Broker, Config, Containment, ModelConfig, RouteConfig, Tls, Tuner

__all__ = ["Broker", "Config", "Containment", "ModelConfig", "RouteConfig", "Tls", "Tuner", "load", "parse"]
