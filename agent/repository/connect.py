"""The transport that ``updates.transport`` names."""

from __future__ import annotations

from agent.config.tables import Broker, Updates
from agent.repository.transport import Transport


def open_transport(settings: Updates, device: str, broker: Broker) -> Transport:
    """To the repository of ``settings``. Raises ``Refused``."""
    if settings.transport == "mqtt":
        from agent.repository.over_mqtt import OverMqtt

        return OverMqtt(broker, settings.repository, device, settings)
    from agent.repository.https import Https

    return Https(settings)
