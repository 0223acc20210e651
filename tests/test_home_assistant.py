"""Home Assistant's discovery: against a schema of its documentation, its templates filled by jinja2, a real broker."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from agent.config import load
from agent.integrations.home_assistant import HomeAssistant, slug
from agent.modelfile import read
from agent.mqtt.messages import Outgoing
from agent.updates.status import Reason, State, Status, Version, job_of
from tests.agent_process import DIGITS, ROUTE, picture, truth

ENABLED = "[home_assistant]\nenabled = true\n"
FIXED = '[[route]]\nsubscribe = "cameras/7"\nmodel = "digits"\npublish = "predictions/7"\n'
TOPIC = "homeassistant/device/int8d_box1/config"


# What Home Assistant's documentation of device discovery asks for; unknown keys are mistakes here.


class Device(msgspec.Struct, forbid_unknown_fields=True):
    identifiers: list[str]
    name: str
    manufacturer: str
    model: str
    sw_version: str


class Origin(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    sw_version: str


class Availability(msgspec.Struct, forbid_unknown_fields=True):
    topic: str


class Sensor(msgspec.Struct, forbid_unknown_fields=True, tag_field="platform", tag="sensor"):
    unique_id: str
    name: str
    value_template: str
    state_topic: str | None = None
    unit_of_measurement: str | None = None
    device_class: Literal["temperature", "duration", "data_size", "enum", None] = None
    state_class: Literal["measurement", "total_increasing", None] = None
    entity_category: Literal["diagnostic", None] = None
    options: list[str] | None = None
    json_attributes_topic: str | None = None
    json_attributes_template: str | None = None


class Update(msgspec.Struct, forbid_unknown_fields=True, tag_field="platform", tag="update"):
    unique_id: str
    name: str
    title: str
    state_topic: str
    value_template: str
    json_attributes_topic: str
    json_attributes_template: str
    command_topic: str
    payload_install: str


class UpdateState(msgspec.Struct, forbid_unknown_fields=True):
    """What an update's value_template gives, as JSON."""

    installed_version: str
    latest_version: str
    in_progress: bool
    update_percentage: Annotated[float, msgspec.Meta(ge=0, le=100)] | None


class Discovery(msgspec.Struct, forbid_unknown_fields=True):
    device: Device
    origin: Origin
    availability: list[Availability]
    state_topic: str
    components: dict[str, Sensor | Update]


UNITS = {"temperature": "°C", "duration": "ms", "data_size": "B", "enum": None}


def _checked(payload: bytes) -> Discovery:
    """Raises where Home Assistant would."""
    found = msgspec.json.decode(payload, type=Discovery)
    ids = [c.unique_id for c in found.components.values()]
    assert len(set(ids)) == len(ids)
    for key, c in found.components.items():
        assert re.fullmatch(r"[A-Za-z0-9_-]+", key)
        if isinstance(c, Update):
            continue
        if c.device_class is not None:
            assert c.unit_of_measurement == UNITS[c.device_class]
        if c.device_class == "enum":  # it may have neither unit nor state class
            assert c.options
            assert c.state_class is None
        assert c.state_class is None or c.unit_of_measurement is not None
    return found


def _filled(template: str, value: bytes) -> str:
    """As Home Assistant renders a value_template."""
    sandbox = pytest.importorskip("jinja2.sandbox")
    undefined = pytest.importorskip("jinja2").StrictUndefined  # Home Assistant's only logs; nothing may be missing here
    environment = sandbox.ImmutableSandboxedEnvironment(undefined=undefined)
    return environment.from_string(template).render(value=value.decode(), value_json=json.loads(value)).strip()


def _made(folder: Path, rest: str = ROUTE + FIXED, name: str = "digits", stats: dict[str, Any] | None = None) -> bytes:
    text = f'device = "box1"\n[[model]]\nname = "{name}"\npath = "{DIGITS}"\n{rest}'.replace(
        '= "digits"', f'= "{name}"'
    )
    (folder / "int8d.toml").write_text(text)
    config = load(folder / "int8d.toml")
    document = HomeAssistant(config, {name: read(DIGITS).header}, folder).document(stats or {})
    return msgspec.json.encode(document)


def test_a_temperature_is_shown_where_the_kernel_tells_one(tmp_path: Path) -> None:
    stats = {"sensors": {"temperature_c": {"cpu": 47.5, "board": 40.0}}}
    assert "temperature" not in _checked(_made(tmp_path)).components
    template = _checked(_made(tmp_path, stats=stats)).components["temperature"].value_template
    assert _filled(template, msgspec.json.encode(stats)) == "47.5"
    assert _filled(template, b"{}") == "None"  # which Home Assistant takes for unknown


def test_a_route_is_shown_where_its_topic_is_always_the_same(tmp_path: Path) -> None:
    assert "digits_class" not in _checked(_made(tmp_path, ROUTE)).components
    found = _checked(_made(tmp_path)).components
    assert found["digits_class"].state_topic == found["digits_confidence"].state_topic == "predictions/7"
    two = FIXED + '[[route]]\nsubscribe = "cameras/8"\nmodel = "digits"\npublish = "predictions/8"\n'
    topics = {c.state_topic for k, c in _checked(_made(tmp_path, two)).components.items() if k.endswith("_class")}
    assert topics == {"predictions/7", "predictions/8"}


def test_a_refusal_makes_the_class_unknown(tmp_path: Path) -> None:
    found = _checked(_made(tmp_path)).components
    for key in ("digits_class", "digits_confidence"):
        assert _filled(found[key].value_template, b'{"error": {"code": "expired", "message": "late"}}') == "None"


UPDATES = '[updates]\nrepository = "https://models.example/"\nroot = "root.json"\n'


def _update(folder: Path) -> Update:
    (folder / "root.json").write_text("{}")
    found = _checked(_made(folder, ROUTE + UPDATES.replace("root.json", f"{folder}/root.json")))
    update = found.components["digits_update"]
    assert isinstance(update, Update)
    return update


@pytest.mark.parametrize(("state", "available", "expected"), [
    ("idle", None, UpdateState("7", "7", False, None)),
    ("committed", Version(7, "a" * 64), UpdateState("7", "7", False, None)),
    ("committed", Version(9, "c" * 64), UpdateState("7", "9", False, None)),
    ("fetching", Version(8, "b" * 64), UpdateState("7", "8", True, 12.5)),
    ("pending", None, UpdateState("7", "8", True, 12.5)),
    ("rolled_back", None, UpdateState("7", "7", False, None)),
])  # fmt: skip
def test_an_update_entity_shows_which_release_serves_and_which_one_comes(
    tmp_path: Path, state: State, available: Version | None, expected: UpdateState
) -> None:
    said = Status(device="box1", model="digits", state=state, job=job_of(state), serving=Version(7, "a" * 64),
                  target=Version(8, "b" * 64), available=available, bytes=1000, bytes_done=125)  # fmt: skip
    shown = _filled(_update(tmp_path).value_template, msgspec.json.encode(said))
    assert msgspec.json.decode(shown, type=UpdateState) == expected


def test_before_any_update_the_release_is_0(tmp_path: Path) -> None:
    said = msgspec.json.encode(Status(device="box1", model="digits"))
    shown = _filled(_update(tmp_path).value_template, said)
    assert msgspec.json.decode(shown, type=UpdateState) == UpdateState("0", "0", False, None)


def test_an_update_entitys_attributes_say_why_it_went_back(tmp_path: Path) -> None:
    why = Reason("latency", 'p99 was 12 ms, "2" before')
    said = Status(device="box1", model="digits", state="rolled_back", job="FAILED", reason=why)
    shown = json.loads(_filled(_update(tmp_path).json_attributes_template, msgspec.json.encode(said)))
    assert shown == {"update_state": "rolled_back", "step": "", "repository": None,
                     "reason": {"code": "latency", "message": why.message}}  # fmt: skip


def test_an_update_entity_is_there_where_updates_are_and_installs_by_the_load_topic(tmp_path: Path) -> None:
    assert "digits_update" not in _checked(_made(tmp_path)).components
    update = _update(tmp_path)
    assert update.state_topic == update.json_attributes_topic == "int8d/box1/v2/repository/models/digits/status"
    assert update.command_topic == "int8d/box1/v2/repository/models/digits/load"
    assert json.loads(update.payload_install) == {"parameters": {"action": "install"}}


def test_names_that_home_assistant_takes_no_ids_of_get_others(tmp_path: Path) -> None:
    assert slug("box-1_a") == "box-1_a"
    assert re.fullmatch(r"a_b_[0-9a-f]{8}", slug("a.b"))
    assert slug("a.b") != slug("a_b") != slug("a..b")
    stats = {"latency_us": {"net.v1": {"total": {"p99": 1234}}}, "drift": {"net.v1": {"verdict": "none", "psi": {}}}}
    found = _checked(_made(tmp_path, name="net.v1", stats=stats)).components
    filled = {c.name: _filled(c.value_template, msgspec.json.encode(stats)) for c in found.values()
              if "net.v1" in c.value_template}  # fmt: skip
    assert filled == {"net.v1 p99 latency": "1.234", "net.v1 drift": "none"}


def test_every_template_can_be_filled_from_what_the_daemon_publishes(agent, peer) -> None:
    running = agent(rest=FIXED + ENABLED + "[drift]\nevery = 1\n")
    client = peer("predictions/7")
    client.send("cameras/7", picture(0))
    reply = client.receive().payload
    retained = peer(TOPIC).receive()
    assert retained.retain
    found = _checked(retained.payload)
    assert found.availability == [Availability("int8d/box1/available")]
    assert found.device.identifiers == ["int8d_box1"]
    listener = peer(found.state_topic)
    while True:
        stats = listener.receive().payload
        if json.loads(stats)["counters"]["answered"]:
            break
    values = {}
    for key, c in found.components.items():
        topic = c.state_topic or found.state_topic
        values[key] = _filled(c.value_template, stats if topic == found.state_topic else reply)
        if c.state_class is not None:
            assert math.isfinite(float(values[key]))
        if c.options is not None:
            assert values[key] in c.options
        if c.json_attributes_template is not None:
            assert json.loads(_filled(c.json_attributes_template, stats))["inputs"] is not None
    assert values["digits_class"] == truth()[0]
    assert 0 < float(values["digits_confidence"]) <= 100
    assert (values["received"], values["answered"], values["digits_drift"]) == ("1", "1", "unknown")
    assert 0 < float(values["digits_p99"]) < 10_000
    assert running.terminate() == 0


def test_availability_follows_the_last_will(agent, peer) -> None:
    running = agent(rest=FIXED + ENABLED)
    found = _checked(peer(TOPIC).receive().payload)
    client = peer(found.availability[0].topic)
    assert client.receive().payload == b"online"  # Home Assistant's own defaults
    running.kill()
    assert client.receive().payload == b"offline"


def test_a_template_without_any_traffic_gives_unknown_or_a_number(agent, peer) -> None:
    agent(rest=FIXED + ENABLED)
    found, stats = _checked(peer(TOPIC).receive().payload), peer("int8d/box1/stats").receive().payload
    filled = {k: _filled(c.value_template, stats) for k, c in found.components.items() if c.state_topic is None}
    assert filled["digits_p99"] == "None"
    assert filled["received"] == "0"


def test_switched_off_it_is_taken_back_once(agent, peer, tmp_path: Path) -> None:
    running = agent(rest=FIXED + ENABLED)
    client = peer("homeassistant/#")
    assert client.receive().payload
    running.terminate()
    running.config.write_text(running.config.read_text().replace("enabled = true", "enabled = false"))
    running.start()
    taken = client.receive()
    assert (taken.topic, taken.payload) == (TOPIC, b"")
    running.wait_log("took back")
    running.terminate()
    running.start()
    peer("int8d/box1/stats").receive()
    assert client.messages.empty()
    late = peer("homeassistant/#", "int8d/box1/available")
    assert late.receive().topic == "int8d/box1/available"  # nothing is retained any more


def test_under_another_prefix_the_old_one_is_taken_back(agent, peer) -> None:
    running = agent(rest=FIXED + ENABLED)
    client = peer("homeassistant/#", "ha/#")
    assert client.receive().topic == TOPIC
    running.terminate()
    running.config.write_text(running.config.read_text() + 'prefix = "ha"\n')
    running.start()
    found = {m.topic: m.payload for m in (client.receive(), client.receive())}
    assert found[TOPIC] == b""
    assert _checked(found["ha/device/int8d_box1/config"]).device.name == "box1"


def test_never_switched_on_nothing_is_published(tmp_path: Path) -> None:
    (tmp_path / "int8d.toml").write_text(f'device = "box1"\n[[model]]\nname = "digits"\npath = "{DIGITS}"\n')
    sent: list[Outgoing] = []
    config = load(tmp_path / "int8d.toml")
    HomeAssistant(config, {}, tmp_path / "state").announce(lambda message, confirmed: sent.append(message), {})
    assert sent == []
    assert not (tmp_path / "state").exists()
