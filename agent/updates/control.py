"""How ``int8d update`` reaches the daemon of its box: a Unix socket in the updates' folder, for its owner alone.

A line of JSON asks, lines of JSON answer: the status as it changes, then the last one with ``done``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import Int8dError
from agent.repository.reasons import Refused
from agent.updates.status import Reason, Status
from agent.updates.updater import Updates
from agent.updates.wishes import Action

log = logging.getLogger(__name__)
_NAME = "control"
_MOST_BYTES = 1 << 16  # of a line
_TIMEOUT_S = 5.0  # to say what one wants


class Ask(msgspec.Struct, frozen=True):
    """What is asked."""

    model: str
    action: Action | Literal["status"]
    release: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """status: as it is now. done: that was the last line; refused: why it is not as it was asked for, if so."""

    status: Status | None = None
    done: bool = False
    refused: Reason | None = None


class Control:
    """The daemon's end."""

    def __init__(self, updates: Updates) -> None:
        self._updates = updates
        self._watching: set[tuple[str, queue.Queue[Answer]]] = set()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._bind()
        except OSError as e:  # serving needs no one to call
            log.error("int8d update can't reach this process: no socket in %s (%s)", updates.folder, e.strerror)
            return
        self._socket.listen(4)
        threading.Thread(target=self._accept, name="update-control", daemon=True).start()

    def _bind(self) -> None:
        with _address(self._updates.folder) as address:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
            self._socket.bind(address)
            os.chmod(address, 0o600)

    def tell(self, status: Status) -> None:
        """A status has changed."""
        with self._lock:
            for model, answers in self._watching:
                if model == status.model:
                    answers.put(Answer(status))

    def close(self) -> None:
        """Nobody is listened to any more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(OSError):
            (self._updates.folder / _NAME).unlink()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="update-caller", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        answers: queue.Queue[Answer] = queue.Queue()
        with connection:
            connection.settimeout(_TIMEOUT_S)
            try:
                with connection.makefile("rb") as file:
                    ask = msgspec.json.decode(file.readline(_MOST_BYTES), type=Ask)
                watcher = (ask.model, answers)
                with self._lock:
                    self._watching.add(watcher)
                try:
                    self._ask(ask, answers)
                    while True:
                        answer = answers.get()
                        connection.sendall(msgspec.json.encode(answer) + b"\n")
                        if answer.done:
                            return
                finally:
                    with self._lock:
                        self._watching.discard(watcher)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError) as e:
                log.info("a caller of int8d update has left: %s", e)

    def _ask(self, ask: Ask, answers: queue.Queue[Answer]) -> None:
        def answer(status: Status | None, why: Refused | None) -> None:
            answers.put(Answer(status, True, None if why is None else Reason(why.code, str(why))))

        try:
            if ask.action == "status":
                answer(self._updates.status(ask.model), None)
                return
            self._updates.ask(ask.model, ask.action, answer, ask.release)
        except Refused as e:
            answer(None, e)
        except Int8dError as e:
            answers.put(Answer(None, True, Reason("", str(e))))


def ask(folder: Path, wanted: Ask, tell: Callable[[Status], None]) -> Status | None:
    """The caller's end: tells each status, and gives the last. None: no daemon listens there.

    Raises ``Int8dError``, ``Refused`` where there is a code, for what the daemon refuses.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with _address(folder) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        except PermissionError as e:
            raise Int8dError(f"{folder / _NAME}: permission denied: ask as the user that int8d runs as, or root") from e
        connection.sendall(msgspec.json.encode(wanted) + b"\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                answer = msgspec.json.decode(line, type=Answer)
                if answer.refused is not None:
                    if answer.refused.code:
                        raise Refused(answer.refused.code, answer.refused.message)
                    raise Int8dError(answer.refused.message)
                if answer.done:
                    return answer.status
                if answer.status is not None:
                    tell(answer.status)
    raise Int8dError("the daemon has ended meanwhile; it goes on with the update when it starts again")


@contextlib.contextmanager
def _address(folder: Path) -> Iterator[str]:
    """A name of the socket that is short enough, however deep the folder lies (108 bytes at most)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{_NAME}"
    finally:
        os.close(descriptor)
