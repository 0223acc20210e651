"""A route's share of the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Overload = Literal["reject", "drop_oldest", "latest_per_source"]
MAX_PRIORITY = 9


@dataclass(frozen=True, eq=False)
class Lane:
    """At most ``max_queue`` requests wait, past that ``overload`` decides.

    priority: of requests that bring none, 0..9.
    """

    name: str
    max_queue: int = 1000
    overload: Overload = "reject"
    priority: int = 0
