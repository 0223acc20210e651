"""Names of operators and tensors in tables for people: converters write some of several hundred characters."""

from __future__ import annotations


def abridged(name: str, most: int = 56) -> str:
    """The name, or, where it has more than ``most`` characters, its two ends around an ellipsis."""
    if len(name) <= most:
        return name
    head = most // 2
    return f"{name[:head]}…{name[head + 1 - most :]}"
