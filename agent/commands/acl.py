"""``int8d acl``: who may publish and read what, as a file for mosquitto's ``acl_file``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import ConfigError

if TYPE_CHECKING:
    from agent.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="*", metavar="int8d.toml", help="of each device; its routes are read from it")
    parser.add_argument("--device", action="append", default=[], metavar="NAME", help="a device that has no routes")
    parser.add_argument("--prefix", default="int8d", help="of these devices' topics (default: int8d)")
    parser.add_argument("--client", action="append", default=[], metavar="NAME=DEVICE,DEVICE",
                        help="may send requests to these devices, and read its own replies")  # fmt: skip
    parser.add_argument("--sender", action="append", default=[], metavar="NAME=TOPIC",
                        help="may publish to a route's topic, and read where its replies go")  # fmt: skip
    parser.add_argument("--watcher", action="append", default=[], metavar="NAME",
                        help="may read what all devices say of themselves, for int8d watch")  # fmt: skip
    parser.add_argument("--repository", action="append", default=[], metavar="NAME=TOPIC",
                        help="runs int8d-make serve --mqtt on this topic; the --device ones may ask it")  # fmt: skip
    parser.add_argument("--operator", action="append", default=[], metavar="NAME",
                        help="may have all devices look for updates, and read where these stand")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="default: standard output")


def run(args: argparse.Namespace) -> int:
    from agent.config import parse
    from agent.files import write_atomically
    from agent.mqtt.acl import Device, acl

    repositories = [_pair(text, "--repository", "NAME=TOPIC") for text in args.repository]
    asks = {name: [line for _, topic in repositories for line in _asks(topic, name)] for name in args.device}
    devices = [Device(name, args.prefix, more=asks[name]) for name in args.device]
    for path in args.config:
        config = parse(path)
        routes = tuple((r.subscribe, r.publish) for r in config.route)
        user = config.broker.username or ""
        devices.append(Device(config.device, config.prefix, user, routes, _more(config)))
    if not devices:
        raise ConfigError("no device is named: give an int8d.toml, or --device NAME")
    clients: dict[str, list[str]] = {}
    for name, wanted in (_pair(text, "--client", "NAME=DEVICE,DEVICE") for text in args.client):
        clients.setdefault(name, []).extend(wanted.split(","))
    senders = [_pair(text, "--sender", "NAME=TOPIC") for text in args.sender]
    servers = {name: _answers(topic) for name, topic in repositories}
    text = acl(devices, clients, senders, args.watcher, args.operator, servers)
    if args.output is None:
        sys.stdout.write(text)
        return 0
    try:
        write_atomically(Path(args.output), text.encode())
    except OSError as e:
        raise ConfigError(f"{args.output}: can't be written ({e.strerror})") from e
    return 0


def _asks(repository: str, device: str) -> list[str]:
    """What a device takes that gets its models through the broker."""
    from agent.repository import pieces

    return [f"write {pieces.request_topic(repository, device)}", f"read {pieces.reply_topic(repository, device)}"]


def _answers(repository: str) -> list[str]:
    """What the repository's server takes."""
    from agent.repository import pieces

    if not pieces.is_repository(repository):
        raise ConfigError(f"repository '{repository}' is not a topic: at most 200 characters, no + # $")
    return [f"read {pieces.request_topic(repository, '+')}", f"write {pieces.reply_topic(repository, '+')}"]


def _more(config: Config) -> list[str]:
    """What Home Assistant, Sparkplug and a repository over MQTT take."""
    from agent.integrations import home_assistant, sparkplug

    lines = []
    if config.home_assistant.enabled:
        lines.append(f"write {home_assistant.topic(config.home_assistant.prefix, config.device)}")
    if config.sparkplug.enabled:
        group = config.sparkplug.group
        lines += [f"write {sparkplug.topic(group, kind, config.device)}" for kind in sparkplug.WRITTEN]
        lines.append(f"read {sparkplug.topic(group, 'NCMD', config.device)}")
    if config.updates.repository and config.updates.transport == "mqtt":
        lines += _asks(config.updates.repository, config.device)
    return lines


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, _, rest = text.partition("=")
    if not name or not rest:
        raise ConfigError(f"{option} '{text}': write {form}")
    return name, rest
