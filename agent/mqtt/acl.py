"""A mosquitto ACL that gives each device, client, sender and watcher its own topics, and nothing else.

mosquitto grants every subscription and looks at the ACL when it delivers; a publication that is denied gets reason code
135 at MQTT 5, and at 3.1.1 vanishes without a word to its sender. A user is who the listener says: the common name of a
certificate (``use_identity_as_username``) or the user name of a password. A client's MQTT client id must be its user's
name, for its reply topics are below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.errors import ConfigError
from agent.mqtt.routes import Filter, fill, filter_of, meet, published


@dataclass(frozen=True)
class Device:
    """What the ACL must know of an int8d.toml. routes: (subscribe, publish) of each; user: its name at the broker.

    more: what else it may read and write, as the ACL's own ``read TOPIC`` and ``write TOPIC``.
    """

    name: str
    prefix: str = "int8d"
    user: str = ""
    routes: Sequence[tuple[str, str]] = field(default_factory=tuple)
    more: Sequence[str] = ()

    @property
    def base(self) -> str:
        return f"{self.prefix}/{self.name}"


_Lines = dict[str, list[str]]  # user -> "read topic"


def acl(
    devices: Sequence[Device],
    clients: Mapping[str, Sequence[str]] = {},
    senders: Iterable[tuple[str, str]] = (),
    watchers: Iterable[str] = (),
    operators: Iterable[str] = (),
    others: Mapping[str, Sequence[str]] = {},
) -> str:
    """The file's text.

    clients: user -> the devices that it may ask. senders: (user, topic or filter that it publishes to), for routes; it
    may also read where the routes' replies go. watchers: users that read what all devices say of themselves.
    operators: users that may have all devices look for updates, and read where these stand and the replies to them.
    others: user -> what it may, as ``Device.more``.
    Raises ``ConfigError`` for unknown devices, topics that no route takes, two devices of one name, and text that an
    ACL can't hold.
    """
    lines: _Lines = {}
    names = {d.name: d for d in devices}
    bases = [d.base for d in devices]
    for base in bases:
        if bases.count(base) > 1:
            raise ConfigError(f"two devices are called '{base}'; each needs a name or a prefix of its own")
    for device in devices:
        _grant(lines, device.user or device.name, _of_device(device))
    for user, wanted in clients.items():
        for name in wanted:
            if name not in names:
                raise ConfigError(f"client '{user}': no device '{name}'; there are: {', '.join(names)}")
            _grant(lines, user, _of_client(user, names[name].base))
    for user, topic in senders:
        _grant(lines, user, _of_sender(user, topic, devices))
    for user in watchers:
        for device in devices:
            _grant(lines, user, _of_watcher(device.base))
    for user in operators:
        for device in devices:
            _grant(lines, user, _of_operator(user, device.base))
    for user, topics in others.items():
        _grant(lines, user, topics)
    head = "# Written by `int8d acl`. Who is not named here may nothing; so may who is, but for what stands below.\n"
    return head + "".join(f"\nuser {user}\n" + "".join(f"topic {line}\n" for line in lines[user]) for user in lines)


def _of_device(device: Device) -> list[str]:
    base = device.base
    models = f"{base}/v2/models/+"
    read = [f"{models}/infer", f"{models}/infer/request/#", f"{base}/v2/repository/models/+/load"]
    write = [
        f"{base}/{t}" for t in ("available", "stats", "dead-letter", "clients/+/reply", "v2/repository/models/+/status")
    ]
    write += [f"{models}/ready", f"{models}/infer/response/#"]
    for subscribe, publish in device.routes:
        read.append(subscribe)
        write.append(filter_of(published(publish, Filter(subscribe))))
    return [f"read {t}" for t in read] + [f"write {t}" for t in write] + list(device.more)


def _of_client(user: str, base: str) -> list[str]:
    _check_level("client", user)
    models = f"{base}/v2/models/+"
    return [
        f"write {models}/infer",
        f"write {models}/infer/request/{user}/+",
        f"read {models}/infer/response/{user}/+",
        f"read {base}/clients/{user}/reply",
        f"read {base}/available",
    ]


def _check_level(kind: str, user: str) -> None:
    if "/" in user or "+" in user or "#" in user:
        raise ConfigError(f"{kind} '{user}': a name that stands in topics has no / + #")


def _of_sender(user: str, topic: str, devices: Sequence[Device]) -> list[str]:
    levels = Filter(topic).levels
    replies = []
    for subscribe, publish in (route for device in devices for route in device.routes):
        taken = Filter(subscribe)
        if not meet(levels, taken.levels):
            continue
        found = taken.match(topic) if not Filter(topic).wildcards else None
        replies.append(fill(publish, found) if found is not None else filter_of(published(publish, taken)))
    if not replies:
        raise ConfigError(f"sender '{user}': no route of the devices takes '{topic}'")
    return [f"write {topic}"] + [f"read {t}" for t in replies]


def _of_watcher(base: str) -> list[str]:
    topics = ("available", "stats", "v2/models/+/ready", "v2/repository/models/+/status")
    return [f"read {base}/{t}" for t in topics]


def _of_operator(user: str, base: str) -> list[str]:
    _check_level("operator", user)
    models = f"{base}/v2/repository/models/+"
    return [
        f"write {models}/load",
        f"read {models}/status",
        f"read {base}/clients/{user}/reply",
        f"read {base}/available",
    ]


def _grant(lines: _Lines, user: str, topics: Iterable[str]) -> None:
    for text in (user, *topics):
        # A line break would begin a rule of the sender's own making.
        if not text or text != text.strip() or not text.isprintable() or text.startswith("#"):
            raise ConfigError(f"'{text!r}' can't stand in an ACL: no control characters, no spaces at its ends, no #")
    known = lines.setdefault(user, [])
    known.extend(t for t in dict.fromkeys(topics) if t not in known)
