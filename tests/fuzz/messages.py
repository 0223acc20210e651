"""Mutations of a protocol buffer's message, by its description."""

from __future__ import annotations

from typing import Any

from tests.fuzz.mutations import TEXTS, Rng, hostile_float, hostile_int, pick

Place = tuple[Any, Any]  # a message and the descriptor of one of its fields


def _places(message: Any) -> list[Place]:
    found = []
    for field, value in message.ListFields():
        found.append((message, field))
        if field.message_type:
            for child in value if _repeated(message, field) else [value]:
                found += _places(child)
    return found


def _repeated(message: Any, field: Any) -> bool:
    return hasattr(getattr(message, field.name), "append") or hasattr(getattr(message, field.name), "add")


def _texts(places: list[Place]) -> list[str]:
    found = []
    for message, field in places:
        if field.type == field.TYPE_STRING:
            value = getattr(message, field.name)
            found += [value] if isinstance(value, str) else list(value)
    return found


def mutate_message(rng: Rng, message: Any) -> None:
    """Changes one field: its value, or, where it is repeated, its elements and their order; or adds one."""
    places = _places(message)
    parent, field = pick(rng, places)
    if rng.random() < 0.1:  # a field that was not there
        field = pick(rng, parent.DESCRIPTOR.fields)
    value = getattr(parent, field.name)
    if rng.random() < 0.08:
        parent.ClearField(field.name)
    elif field.message_type and _repeated(parent, field):
        _reorder(rng, value)
    elif field.message_type:
        value.SetInParent()
    elif _repeated(parent, field):
        elements = list(value)
        at = int(rng.integers(len(elements))) if elements else 0
        how = rng.integers(5)
        if how == 0 and elements:
            del elements[at]
        elif how == 1 and elements:
            elements.insert(at, elements[at])
        elif how == 2:
            elements.reverse()
        elif elements:
            elements[at] = _scalar(rng, field, elements[at], places)
        del value[:]
        value.extend(elements)
    else:
        setattr(parent, field.name, _scalar(rng, field, value, places))


def _reorder(rng: Rng, repeated: Any) -> None:
    if not len(repeated):
        repeated.add()
        return
    a, b = (int(v) for v in rng.integers(0, len(repeated), 2))
    how = rng.integers(4)
    if how == 0:
        del repeated[a]
    elif how == 1:
        repeated.add().CopyFrom(repeated[a])
    elif how == 2:
        kept = type(repeated[a])()
        kept.CopyFrom(repeated[a])
        repeated[a].CopyFrom(repeated[b])
        repeated[b].CopyFrom(kept)
    else:
        repeated[a].CopyFrom(repeated[b])


def _scalar(rng: Rng, field: Any, value: Any, places: list[Place]) -> Any:
    if field.type == field.TYPE_STRING:
        return pick(rng, TEXTS if rng.random() < 0.2 else _texts(places))
    if field.type == field.TYPE_BYTES:
        return pick(rng, [b"", value[:-1], value + value, value[::-1], rng.bytes(len(value)), b"\xff" * len(value)])
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return pick(rng, [hostile_float(rng, value), float("nan"), float("inf"), -value])
    if field.type == field.TYPE_ENUM:
        return pick(rng, field.enum_type.values).number
    bits, signed = (32, True) if field.type == field.TYPE_INT32 else (64, field.type == field.TYPE_INT64)
    wide = hostile_int(rng, int(value)) % 2**bits
    return wide - 2**bits if signed and wide >= 2 ** (bits - 1) else wide
