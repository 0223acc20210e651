"""Home Assistant's MQTT discovery: one retained message that makes a device of its own out of the agent.

    HomeAssistant(config, headers, state).announce(session.publish, stats)

It is the device form (one topic, ``<prefix>/device/<id>/config``, with all components), known since Home Assistant
2024.12. States come from the topics that the agent publishes anyway; docs/integrations.md lists them.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__
from agent.config import Config
from agent.files import write_atomically
from agent.modelfile import Header
from agent.mqtt.messages import Outgoing
from agent.mqtt.routes import can_publish
from agent.telemetry.drift import VERDICTS

log = logging.getLogger(__name__)
Publish = Callable[[Outgoing, Callable[[str | None], None]], None]
# Where an update stands, in the update entity's JSON.
_UPDATE = (
    "{% set here = value_json.serving.release | default(0) %}"
    "{% set going = value_json.job == 'IN_PROGRESS' %}"
    "{% set next = value_json.target if going else value_json.available %}"
    "{{ {'installed_version': here | string,"
    " 'latest_version': (next.release | default(0) if next else here) | string,"
    " 'in_progress': going, 'update_percentage':"
    " (100 * value_json.bytes_done / value_json.bytes) | round(1) if going and value_json.bytes else none} | tojson }}"
)
_UPDATE_DETAILS = (
    "{{ {'update_state': value_json.state, 'step': value_json.step, 'reason': value_json.reason,"
    " 'repository': value_json.repository} | tojson }}"
)
_TEMPERATURES = "value_json.get('sensors', {}).get('temperature_c', {}).values() | list"


class HomeAssistant:
    """Publishes the message on every connection, or takes back what an earlier configuration left on the broker.

    headers: of the models, by name. state: a folder; what was published is noted there, for it is retained and outlives
    the setting.
    """

    def __init__(self, config: Config, headers: Mapping[str, Header], state: Path) -> None:
        self._config, self._headers = config, headers
        self._note = state / "home-assistant"
        settings = config.home_assistant
        self._id = _id(config.device)
        self._topic = topic(settings.prefix, config.device) if settings.enabled else None

    def announce(self, publish: Publish, stats: Mapping[str, Any]) -> None:
        """stats: the document of the ``stats`` topic, which tells what there is to show."""
        noted = self._noted()
        if self._topic is not None and self._topic not in noted:
            self._write([*noted, self._topic])  # first, so that it can be taken back whatever happens then
        for topic in noted:
            if topic != self._topic:
                publish(Outgoing(topic, b"", 1, True), lambda reason, topic=topic: self._forget(topic, reason))  # type: ignore[misc]
        if self._topic is not None:
            publish(Outgoing(self._topic, msgspec.json.encode(self.document(stats)), 1, True), self._refused)

    def document(self, stats: Mapping[str, Any]) -> dict[str, Any]:
        """The discovery message; its templates are to be filled from ``stats`` and from replies."""
        config = self._config
        components: dict[str, dict[str, Any]] = {}

        def sensor(key: str, name: str, template: str, **more: Any) -> None:
            components[key] = {"platform": "sensor", "unique_id": f"{self._id}_{key}", "name": name,
                               "value_template": template, **more}  # fmt: skip

        about = {"entity_category": "diagnostic"}
        for counter in ("received", "answered", "refused"):
            sensor(counter, counter.capitalize(), f"{{{{ value_json.counters.{counter} }}}}",
                   state_class="total_increasing", unit_of_measurement="messages")  # fmt: skip
        sensor("queued", "Waiting", "{{ value_json.queued }}", state_class="measurement",
               unit_of_measurement="messages", **about)  # fmt: skip
        sensor("memory", "Memory", "{{ value_json.resident_bytes }}", device_class="data_size", unit_of_measurement="B",
               state_class="measurement", **about)  # fmt: skip
        if stats.get("sensors", {}).get("temperature_c"):
            sensor("temperature", "Temperature",
                   f"{{% set t = {_TEMPERATURES} %}}{{{{ t | max if t else None }}}}", device_class="temperature",
                   unit_of_measurement="°C", state_class="measurement", **about)  # fmt: skip
        for model in self._headers:
            key = slug(model)
            sensor(f"{key}_p99", f"{model} p99 latency",
                   f"{{% set t = value_json.latency_us.get('{model}', {{}}).get('total') %}}"
                   "{{ (t.p99 / 1000) | round(3) if t else None }}", device_class="duration",
                   unit_of_measurement="ms", state_class="measurement", **about)  # fmt: skip
            drift = stats.get("drift", {}).get(model)
            if drift is not None:
                details = {
                    "json_attributes_topic": f"{config.base}/stats",
                    "json_attributes_template": f"{{{{ value_json.drift['{model}'].psi | tojson }}}}",
                }
                sensor(f"{key}_drift", f"{model} drift", f"{{{{ value_json.drift['{model}'].verdict }}}}",
                       device_class="enum", options=list(VERDICTS), **(details if "psi" in drift else {}))  # fmt: skip
        for key, name, topic in self._classifiers():
            known = "if value_json.classes is defined else None }}"
            sensor(f"{key}_class", f"{name} class", f"{{{{ value_json.classes[0].label {known}", state_topic=topic)
            sensor(f"{key}_confidence", f"{name} confidence",
                   f"{{{{ (value_json.classes[0].probability * 100) | round(1) {known}", state_topic=topic,
                   unit_of_measurement="%", state_class="measurement")  # fmt: skip
        if config.updates.repository:
            for model in self._headers:
                components[f"{slug(model)}_update"] = self._update(model)
        return {
            "device": {"identifiers": [self._id], "name": config.device, "manufacturer": "int8d",
                       "model": "int8 inference", "sw_version": __version__},
            "origin": {"name": "int8d", "sw_version": __version__},
            "availability": [{"topic": f"{config.base}/available"}],  # "online" and "offline" are its own defaults
            "state_topic": f"{config.base}/stats",
            "components": components,
        }  # fmt: skip

    def _update(self, model: str) -> dict[str, Any]:
        """An update entity: which release of a model serves, and which one is coming."""
        topics = f"{self._config.base}/v2/repository/models/{model}"
        return {
            "platform": "update",
            "unique_id": f"{self._id}_{slug(model)}_update",
            "name": f"{model} release",
            "title": model,
            "state_topic": f"{topics}/status",
            "value_template": _UPDATE,
            "json_attributes_topic": f"{topics}/status",
            "json_attributes_template": _UPDATE_DETAILS,
            "command_topic": f"{topics}/load",
            "payload_install": '{"parameters": {"action": "install"}}',
        }

    def _classifiers(self) -> list[tuple[str, str, str]]:
        """Key, name and topic of each route that publishes a classifier's replies always to one topic, in clear."""
        fixed = [r for r in self._config.route if not re.search(r"\{\d+\}", r.publish) and r.encryption == "none"
                 and self._headers[r.model].postprocess is not None]  # fmt: skip
        models = [r.model for r in fixed]
        found = {}
        for r in fixed:
            alone = models.count(r.model) == 1
            key = slug(r.model) if alone else f"{slug(r.model)}_{slug(r.publish)}"
            found[r.publish] = (key, r.model if alone else f"{r.model} {r.publish}", r.publish)
        return list(found.values())

    def _refused(self, reason: str | None) -> None:
        if reason is not None:
            log.error("the broker refuses Home Assistant's discovery on '%s': %s", self._topic, reason)

    def _forget(self, topic: str, reason: str | None) -> None:
        if reason is None:
            self._write([noted for noted in self._noted() if noted != topic])
            log.info("took back Home Assistant's discovery on '%s'", topic)

    def _noted(self) -> list[str]:
        try:
            lines = self._note.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        return [line for line in lines if can_publish(line)]

    def _write(self, topics: list[str]) -> None:
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._note, "".join(f"{topic}\n" for topic in topics).encode())
        except OSError as e:
            log.warning("%s can't be written (%s): switched off, discovery will have to be taken back by hand",
                        self._note, e.strerror)  # fmt: skip


def topic(prefix: str, device: str) -> str:
    """Where a device's message lies."""
    return f"{prefix}/device/{_id(device)}/config"


def _id(device: str) -> str:
    return f"int8d_{slug(device)}"


def slug(name: str) -> str:
    """Letters, digits, _ and - only, as Home Assistant wants ids; different names give different ones."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return plain if plain == name else f"{plain}_{zlib.crc32(name.encode()):08x}"
