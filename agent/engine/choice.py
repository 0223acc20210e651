"""How an operator may be computed: what the tuner chooses from. Every choice gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

Split = Literal["auto", "rows", "panels"]


class Choice(msgspec.Struct, frozen=True):
    """``Choice()`` is the default. What a program can't have is passed over by the builder, without an error.

    kernel: by name; empty is the usual one. split: whether workers share the rows of the output or the panels of its
    channels. fused: into the sum or the table that can take the operator over.
    """

    kernel: str = ""
    split: Split = "auto"
    fused: bool = True


Choices = Mapping[str, Choice]  # by operator; the others have the default


@dataclass(frozen=True)
class Option:
    """An operator with more than one possibility.

    taker: the sum or the table that could take it over, or empty: work may move between the two. candidates: the
    default first, then the most promising.
    """

    operator: str
    taker: str
    candidates: tuple[Choice, ...]
