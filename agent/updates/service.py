"""What the way of an update asks of others: of those who do its steps apart, and of what serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from agent.repository.release import Target


class Steps(Protocol):
    """What is done in processes of their own. Each raises ``Refused``."""

    def fetch(self, target: Target, part: Path, progress: Callable[[int], None], stop: threading.Event) -> None:
        """Brings the file to ``part``, verified and synced; goes on with what is there."""
        ...

    def test(
        self, model: str, target: Target, file: Path, serving: Target | None, stop: threading.Event
    ) -> dict[str, float]:
        """Whether it runs here, within its budgets; what was measured, beside what is in service."""
        ...


class Service(Protocol):
    """What serves. A model's candidate is loaded beside what is in service."""

    def load(self, model: str, target: Target | None) -> None:
        """Makes the candidate, warmed up; None: of int8d.toml's own file. Raises ``Int8dError``."""
        ...

    def shadow(self, model: str, tell: Callable[[dict[str, float]], None], stop: threading.Event) -> None:
        """Has the candidate look on at live inputs. Raises ``Refused``."""
        ...

    def switch(self, model: str) -> None:
        """The candidate serves, from the next request on; what served is kept beside it."""
        ...

    def probation(self, model: str, tell: Callable[[dict[str, float]], None], stop: threading.Event) -> None:
        """Watches what serves until its probation is over. Raises ``Refused``."""
        ...

    def back(self, model: str, target: Target | None) -> None:
        """``target`` serves again, from the next request on; the candidate is dropped."""
        ...

    def keep(self, model: str) -> None:
        """What served before the switch is dropped."""
        ...


class Settings(Protocol):
    """What is read of ``agent.config.Updates``."""

    @property
    def max_starts(self) -> int: ...
