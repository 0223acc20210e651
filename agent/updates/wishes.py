"""What somebody has asked for of one model's updates and is not done yet: on the disk before the message that asks is
acknowledged, so that a death loses none of it.

A ``check`` is not kept: its answer would be late for who asked. An ``install`` is kept until the journal has the
update; a ``rollback`` says what it takes back as soon as that is known, so that it is not taken back twice.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from agent.disk import Disk
from agent.repository.reasons import Refused
from agent.updates.status import Status

log = logging.getLogger(__name__)
Action = Literal["check", "install", "rollback"]
Answer = Callable[[Status, Refused | None], None]
_KNOWN = 32  # messages: a broker delivers one again soon, or not at all


@dataclass(eq=False)
class Wish:
    """release: to install instead of what is due; of a rollback: from that one only. of: what a rollback takes back, by
    its SHA-256; None: not known yet. tries: processes that have had it before this one.
    """

    action: Action
    release: int | None = None
    answer: Answer = lambda status, why: None
    of: str | None = None
    tries: int = 0


class _Kept(msgspec.Struct):
    action: Action
    release: int | None = None
    of: str | None = None
    tries: int = 0


class _File(msgspec.Struct):
    """taken: the messages that have asked lately."""

    wishes: list[_Kept] = []
    taken: list[str] = []


class Wishes:
    """In the order in which they came. Whoever takes one out says when it is done. For any thread.

    most: that wait. max_starts: of processes with one of them, before it is dropped: no message may end a device again
    and again.
    """

    def __init__(self, folder: Path, disk: Disk, most: int, max_starts: int) -> None:
        self._path, self._disk = folder / "wishes.json", disk
        self._most, self._max_starts = most, max_starts
        self._lock = threading.Lock()
        self._waiting: queue.Queue[Wish | None] = queue.Queue()
        self._kept: list[Wish] = []
        self._taken: list[str] = []

    def read(self) -> None:
        """What was left by the last process."""
        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return
        except (msgspec.DecodeError, UnicodeDecodeError, OSError, RecursionError) as e:
            log.error("%s can't be read (%s); what was asked for and not done has to be asked for again", self._path, e)
            return
        with self._lock:
            self._taken = file.taken
            for kept in file.wishes:
                if kept.tries >= self._max_starts:
                    log.error("%s: %d processes have died with it", _text(kept), kept.tries)
                    continue
                log.info("%s, as was asked before the restart", _text(kept))
                wish = Wish(kept.action, kept.release, of=kept.of, tries=kept.tries + 1)
                self._kept.append(wish)
                self._waiting.put(wish)
            if file.wishes:
                self._write()

    def put(self, wish: Wish, message: str = "") -> None:
        """message: what it is known by where it comes again. Raises ``Refused`` where too many wait."""
        with self._lock:
            if self._waiting.qsize() >= self._most:
                raise Refused("busy", f"{self._most} wishes for this model wait already (updates.max_wishes)")
            if message:
                self._taken = [*self._taken, message][-_KNOWN:]
            if wish.action != "check":
                self._kept.append(wish)
            if message or wish.action != "check":
                self._write()
            self._waiting.put(wish)

    def known(self, message: str) -> bool:
        """Whether it has asked already."""
        with self._lock:
            return message in self._taken

    def take(self, timeout: float | None) -> Wish | None:
        """The next; None after ``wake``. Raises ``queue.Empty``."""
        return self._waiting.get(timeout=timeout)

    def wake(self) -> None:
        """Whoever waits in ``take``."""
        self._waiting.put(None)

    def takes_back(self, wish: Wish, sha256: str) -> None:
        """That is what the rollback is about."""
        with self._lock:
            wish.of = sha256
            if wish in self._kept:
                self._write()

    def to_take_back(self, sha256: str) -> bool:
        """Whether a rollback waits that is about that."""
        with self._lock:
            return any(wish.of == sha256 for wish in self._kept)

    def done(self, wish: Wish) -> None:
        """Or the journal has it."""
        with self._lock:
            if wish in self._kept:
                self._kept.remove(wish)
                self._write()

    def _write(self) -> None:
        kept = [_Kept(w.action, w.release, w.of, w.tries) for w in self._kept]
        try:
            self._disk.folder(self._path.parent)
            self._disk.write(self._path, msgspec.json.encode(_File(kept, self._taken)))
        except OSError as e:  # what is asked for on a full disk, a rollback for one, must be done all the same
            log.error("%s can't be written (%s): what is asked for now does not outlive this process", self._path, e)


def _text(kept: _Kept) -> str:
    return kept.action + (f" of release {kept.release}" if kept.release is not None else "")
