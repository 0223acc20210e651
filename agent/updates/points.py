"""Where the way of an update may be cut off: by name, so that tests can end the process at each."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)
POINTS = (
    "before asked",
    "after asked",
    "before begin",
    "after begin",
    "before fetch",
    "after fetch",
    "before fetched",
    "after fetched",
    "before test",
    "after test",
    "after tested",
    "before pending",
    "after pending",
    "before load",
    "after load",
    "before switch",
    "in the middle of switch",
    "after switch",
    "before probation",
    "after probation",
    "before commit",
    "in the middle of commit",
    "after commit",
    "before rollback",
    "in the middle of rollback",
    "after rollback",
)


def reached(point: str) -> None:
    """Called at each of ``POINTS``, where a death must do no harm; tests die here."""
    assert point in POINTS, point
    log.debug("reached: %s", point)
