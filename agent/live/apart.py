"""Work that may never come back, on a thread of its own: who waits for it waits for so long and no longer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Apart(Generic[T]):
    """One thread for one work after the other, for each new one would take a share of the heap of its own.

    busy: it has not come back, and will take nothing more.
    """

    def __init__(self, name: str) -> None:
        self.busy = False
        self._asked: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def run(self, work: Callable[[], T], seconds: float) -> T:
        """Raises what ``work`` raises, and ``TimeoutError``."""
        assert not self.busy
        self.busy = True
        self._asked.put(work)
        try:
            result, error = self._ended.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        self.busy = False
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _run(self) -> None:
        while True:
            work = self._asked.get()
            try:
                ended: tuple[T | None, BaseException | None] = work(), None
            except BaseException as e:
                ended = None, e
            self._ended.put(ended)
            del work, ended  # or the last result would live until the next
