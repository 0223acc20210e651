"""The step `fetch`: a release's file comes into ``staging/<sha256>.part``, from where it broke off before.

Runs in a child (child.py). Nothing in the file is believed before its whole length and SHA-256 are the signed ones. A
part that came before a power cut may hold nothing where bytes should be: where a continued file is not the signed one,
it is fetched once more from its start.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import msgspec

from agent.config.tables import Broker, Updates
from agent.disk import Disk
from agent.repository.connect import open_transport
from agent.repository.reasons import Refused
from agent.repository.release import Target
from agent.repository.transport import Progress, Transport

ATTEMPTS = 5  # in a row that bring less than a piece
BACK_OFF_S = 0.5  # after the first; doubled for each
_WORTH = 64 << 10
_TELL_S = 0.2
_AGAIN = ("unreachable", "truncated")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Ask(msgspec.Struct, kw_only=True):
    """part: the file that grows; its folder is there."""

    target: Target
    part: str
    device: str
    settings: Updates
    broker: Broker = Broker()


class Fetched(msgspec.Struct):
    """bytes: of the file. transferred: of them, those that came this time."""

    bytes: int
    transferred: int


def perform(ask: Ask, progress: Progress) -> Fetched:
    """Raises ``Refused``."""
    transport = open_transport(ask.settings, ask.device, ask.broker)
    try:
        return fetch(ask, transport, progress)
    finally:
        transport.close()


def fetch(ask: Ask, transport: Transport, progress: Progress, disk: Disk | None = None) -> Fetched:
    """The whole file, verified and on the disk. Raises ``Refused``; the part stays where it is worth going on from."""
    disk = disk or Disk()
    part = Path(ask.part)
    try:
        with _Part(part, ask.target, progress) as file:
            resumed = file.have > 0
            _check_space(ask, file.have, disk)
            _receive(file, transport)
            if not file.good and resumed:
                file.restart()
                _receive(file, transport)
            if not file.good:
                disk.remove(part)
                raise Refused("damaged", f"'{ask.target.path}' is not the file that was signed: publish it again")
            progress(file.have)
        disk.sync(part)
        disk.sync(part.parent)
    except OSError as e:
        if e.errno not in _FULL:
            raise Refused("disk", f"'{part}' can't be written ({e.strerror})") from e
        disk.remove(part)
        raise Refused("no_space", f"the disk is full: free some space at '{part.parent}'") from e
    return Fetched(file.have, file.transferred)


class _Part:
    """The file that grows, and the hash of what is in it."""

    def __init__(self, path: Path, target: Target, progress: Progress) -> None:
        self._path, self._target, self._progress = path, target, progress
        self._descriptor = -1
        self._told = 0.0
        self.transferred = 0

    def __enter__(self) -> _Part:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._hash = hashlib.sha256()
            self.have = 0
            if os.fstat(self._descriptor).st_size > self._target.bytes:
                os.ftruncate(self._descriptor, 0)
            while data := os.read(self._descriptor, 1 << 20):
                self._hash.update(data)
                self.have += len(data)
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def path(self) -> str:
        """In the repository."""
        return f"targets/{self._target.path}"

    @property
    def left(self) -> int:
        return self._target.bytes - self.have

    @property
    def good(self) -> bool:
        return self.left == 0 and self._hash.hexdigest() == self._target.sha256

    def restart(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.have = 0

    def append(self, data: bytes) -> None:
        """Raises ``OSError``, and ``Refused("endless_data")`` past the signed length; nothing is kept then, for whether
        the signed bytes were whole before the rest came would be chance.
        """
        if len(data) > self.left:
            self.restart()
            raise Refused(
                "endless_data", f"'{self.path}' is longer than the {self._target.bytes} bytes that are signed"
            )
        view = memoryview(data)
        while view:
            written = os.write(self._descriptor, view)
            self._hash.update(view[:written])
            self.have += written
            self.transferred += written
            view = view[written:]
        now = time.monotonic()
        if now - self._told >= _TELL_S:
            self._told = now
            self._progress(self.have)


def _check_space(ask: Ask, have: int, disk: Disk) -> None:
    folder = Path(ask.part).parent
    need, free = ask.target.bytes - have + ask.settings.min_free_bytes, disk.free_bytes(folder)
    if need > free:
        raise Refused(
            "no_space",
            f"'{folder}' has {free} bytes free, and {need} are needed, with the updates.min_free_bytes that stay free",
        )


def _receive(file: _Part, transport: Transport) -> None:
    """To the signed length. A connection that breaks is taken up again, while it brings something."""
    failures = 0
    while file.left:
        before = file.have
        try:
            for data in transport.read(file.path, file.have):
                file.append(data)
            if file.left:
                raise Refused("truncated", f"'{file.path}' ended {file.left} bytes too soon")
        except Refused as e:
            failures = 1 if file.have - before >= _WORTH else failures + 1
            if e.code not in _AGAIN or failures >= ATTEMPTS:
                raise
            time.sleep(BACK_OFF_S * 2 ** (failures - 1))
