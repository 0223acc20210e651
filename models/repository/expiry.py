"""For how long signatures hold."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True)
class Expiry:
    """Days for which a role's metadata is valid once signed.

    timestamp: how long a device can be kept from new releases without noticing; it takes ``repo refresh`` more often
    than that. root, targets and snapshot are renewed by the refresh after half of theirs.
    """

    root: float = 365.0
    targets: float = 180.0
    snapshot: float = 14.0
    timestamp: float = 3.0


def after(days: float) -> datetime:
    """So many days from now, in whole seconds, as TUF writes it."""
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
