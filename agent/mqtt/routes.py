"""Topic filters and the templates of reply topics.

Filter("cameras/+/frame").match("cameras/7/frame")   # ("7",)
fill("predictions/{1}", ("7",))                      # "predictions/7"
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.errors import ConfigError

MAX_LEVELS = 128  # of a topic that we publish to: what EMQX takes by default; mosquitto takes 200


class Filter:
    """An MQTT topic filter. Raises ``ConfigError`` for an invalid one."""

    def __init__(self, text: str) -> None:
        levels = text.split("/")
        valid = 0 < len(text.encode()) < 65536 and "\x00" not in text and text != ""
        for i, level in enumerate(levels):
            if "#" in level and (level != "#" or i != len(levels) - 1):
                valid = False
            if "+" in level and level != "+":
                valid = False
        if not valid:
            raise ConfigError(f"'{text}' is not a topic filter: + and # stand alone between slashes, # only at the end")
        self.text = text
        self.levels = levels
        self.wildcards = sum(level in ("+", "#") for level in levels)

    def match(self, topic: str) -> tuple[str, ...] | None:
        """What the wildcards stand for, or None. ``#`` gives the rest of the topic, slashes and all."""
        parts = topic.split("/")
        if topic.startswith("$") and self.levels[0] in ("+", "#"):
            return None
        found: list[str] = []
        for i, level in enumerate(self.levels):
            if level == "#":
                return (*found, "/".join(parts[i:]))
            if i >= len(parts) or level not in ("+", parts[i]):
                return None
            if level == "+":
                found.append(parts[i])
        return tuple(found) if len(parts) == len(self.levels) else None


def check_template(template: str, wildcards: int, where: str) -> None:
    """Raises ``ConfigError`` where a template is no topic or names a wildcard that is not there."""
    for number in re.findall(r"\{(.*?)\}", template):
        if not number.isdecimal() or not 1 <= int(number) <= wildcards:
            raise ConfigError(f"{where}: publish has {{{number}}}, but the filter has {wildcards} wildcards")
    plain = re.sub(r"\{\d+\}", "x", template)
    if not plain or any(c in plain for c in "+#{}\x00") or len(plain) > 60_000:
        raise ConfigError(f"{where}: publish '{template}' is not a topic")


def published(template: str, filter: Filter) -> list[str]:
    """The levels of a filter that takes every topic which ``fill`` can make of a template with this filter's finds."""
    kinds = [level for level in filter.levels if level in ("+", "#")]
    levels: list[str] = []
    for level in template.split("/"):
        wildcards = [kinds[int(n) - 1] for n in re.findall(r"\{(\d+)\}", level)]
        levels.append("+" if wildcards else level)
        if "#" in wildcards:
            levels.append("#")
    return levels


def filter_of(levels: Sequence[str]) -> str:
    """A filter that takes what the levels of ``published`` take, whose ``#`` may stand anywhere, and perhaps more."""
    end = levels.index("#") + 1 if "#" in levels else len(levels)
    return "/".join(levels[:end])


def meet(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether some topic matches both filters, given as levels; ``#`` may stand anywhere, for no level or more."""
    reachable = {(0, 0)}
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if (i, j) not in reachable:
                continue
            if i < len(a) and a[i] == "#":
                reachable |= {(i + 1, j), (i, min(j + 1, len(b)))}
            elif j < len(b) and b[j] == "#":
                reachable |= {(i, j + 1), (min(i + 1, len(a)), j)}
            elif i < len(a) and j < len(b) and (a[i] == b[j] or "+" in (a[i], b[j])):
                reachable.add((i + 1, j + 1))
    return (len(a), len(b)) in reachable


def fill(template: str, found: tuple[str, ...]) -> str:
    """The template with ``{1}`` … replaced."""
    return re.sub(r"\{(\d+)\}", lambda m: found[int(m[1]) - 1], template)


def can_publish(topic: str) -> bool:
    """Whether a topic, given by a sender, may be published to: no wildcard, no $-topic, no NUL, and not so deep that a
    broker ends the connection over it.
    """
    return (
        0 < len(topic.encode(errors="replace")) < 65536
        and not any(c in topic for c in "+#\x00")
        and topic[0] != "$"
        and topic.count("/") < MAX_LEVELS
    )
