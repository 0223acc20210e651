"""An input that was under work at a death of the process runs while nothing else does, so that if the process dies
again, it alone is struck: with several workers, an innocent neighbour would be given up together with the culprit.
"""

from __future__ import annotations

import threading


class Quarantine:
    """Taken by each worker around a run: together by most, ``alone`` by who has a strike."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = self._patients = 0  # runs under way; runs that are, or want to be, alone

    def enter(self, alone: bool) -> None:
        """Waits until the run may begin."""
        with self._changed:
            if alone:
                self._patients += 1
                self._changed.wait_for(lambda: self._running == 0)
            else:
                self._changed.wait_for(lambda: self._patients == 0)
            self._running += 1

    def leave(self, alone: bool) -> None:
        """The run is over."""
        with self._changed:
            self._running -= 1
            self._patients -= alone
            self._changed.notify_all()
