"""Two strikes: an input that was being worked on when the process died is counted on disk, and at its second strike
refused, so that no message can crash-loop a device.

What each worker works on stands in a small mapped file, written before the input is decoded. The kernel keeps a mapped
page when the process dies, however it dies, so that costs no system call; with ``sync`` each entry is also forced to
the disk, for inputs that take the whole machine down. The next start counts what it finds there into ``strikes.json``.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.files import write_atomically
from agent.serving.quarantine import Quarantine

log = logging.getLogger(__name__)
_DIGEST = 16
_HEAD = struct.Struct("<8sQ")  # magic, the run that wrote the file
_MAGIC = b"int8d-w1"
_COUNT = struct.Struct("<I")
MAX_TOGETHER = 64  # inputs of one worker at a time


class _Ledger(msgspec.Struct):
    """``strikes.json``. release: what they were counted against. counted: the run whose working file is in here."""

    release: str = ""
    counted: int = 0
    strikes: dict[str, int] = {}


class Strikes:
    """Digests of inputs, and how often each was under work when the process died.

    folder: where the files lie; None keeps nothing, for a process that nobody starts again. Where the folder can't be
    written, it says so once and goes on without. At most ``remember`` digests are kept, the oldest dropped. release:
    what runs here, programs and models; with another one every input gets a new chance.
    """

    def __init__(
        self,
        folder: Path | None,
        workers: int = 1,
        most: int = 2,
        remember: int = 10_000,
        sync: bool = False,
        release: str = "",
    ) -> None:
        self._folder, self._most, self._remember, self._sync = folder, most, remember, sync
        self._ledger = _Ledger(release)
        self._changing = threading.Lock()
        self._slot_bytes = _COUNT.size + MAX_TOGETHER * _DIGEST
        self._working: mmap.mmap | None = None
        self.working = True  # whether deaths are counted
        self.quarantine = Quarantine()
        self._suspects: set[str] = set()
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._load(release)
            self._begin_run(workers)
            self._suspects = {name for name, count in self._ledger.strikes.items() if count < most}
        except OSError as e:
            self.working = False
            log.error("no strikes are counted: %s can't be written (%s)", folder, e.strerror)

    def begin(self, worker: int, digests: Sequence[bytes]) -> None:
        """Notes what ``worker`` works on from now; called before anything of it is looked at."""
        if self._working is None:
            return
        digests = digests[:MAX_TOGETHER]
        at = _HEAD.size + worker * self._slot_bytes
        start = at + _COUNT.size
        self._working[start : start + _DIGEST * len(digests)] = b"".join(digests)
        self._working[at : at + _COUNT.size] = _COUNT.pack(len(digests))
        if self._sync:
            self._working.flush()

    @property
    def any(self) -> bool:
        """Whether there is an input with a strike that may be touched again. None is added while the process lives."""
        return bool(self._suspects)

    def end(self, worker: int, digests: Sequence[bytes]) -> None:
        """It is done; what it worked on is forgiven."""
        if self._working is None:
            return
        at = _HEAD.size + worker * self._slot_bytes
        self._working[at : at + _COUNT.size] = b"\0\0\0\0"
        if self._ledger.strikes:
            self._forgive(digests)

    def count(self, digest: bytes) -> int:
        """How often an input was under work at a death since it last came through."""
        strikes = self._ledger.strikes
        return strikes.get(digest.hex(), 0) if strikes else 0

    def out(self, digest: bytes) -> bool:
        """Whether an input must not be touched again."""
        return self.count(digest) >= self._most

    def renew(self, release: str) -> None:
        """Something else runs here from now on."""
        with self._changing:
            if release == self._ledger.release:
                return
            self._ledger = _Ledger(release, self._ledger.counted)
            self._suspects = set()
            self._save()

    def close(self) -> None:
        """An orderly end: what is still under work did no harm."""
        if self._working is not None:
            self._working.close()
            self._working = None
            assert self._folder is not None
            (self._folder / "working").unlink(missing_ok=True)

    def _forgive(self, digests: Sequence[bytes]) -> None:
        with self._changing:
            found = {name for name in (d.hex() for d in digests) if name in self._ledger.strikes}
            for name in found:
                del self._ledger.strikes[name]
            if found:
                self._suspects -= found
                self._save()

    # Files

    def _load(self, release: str) -> None:
        assert self._folder is not None
        path = self._folder / "strikes.json"
        try:
            ledger = msgspec.json.decode(path.read_bytes(), type=_Ledger)
            self._ledger = ledger if ledger.release == release else _Ledger(release, ledger.counted)
        except FileNotFoundError:
            pass
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            log.error("%s is damaged; counting begins anew", path)

    def _begin_run(self, workers: int) -> None:
        """Counts what the last run left, then starts a working file of this one's own."""
        assert self._folder is not None
        path = self._folder / "working"
        left = path.read_bytes() if path.exists() else b""
        if len(left) >= _HEAD.size:
            magic, run = _HEAD.unpack_from(left)
            if magic == _MAGIC and run != self._ledger.counted:
                # Once, however many messages of a batch or workers had the same input: it was one death.
                for name in dict.fromkeys(self._under_work(left)):
                    count = self._ledger.strikes.pop(name, 0) + 1
                    self._ledger.strikes[name] = count
                    log.warning("input %s was under work when the process died: strike %d", name[:16], count)
                self._ledger.counted = run
                while len(self._ledger.strikes) > self._remember:
                    del self._ledger.strikes[next(iter(self._ledger.strikes))]
                # Before the working file is begun anew: a death in between must not count twice, nor not at all.
                self._save()
        size = _HEAD.size + workers * self._slot_bytes
        write_atomically(path, _HEAD.pack(_MAGIC, int.from_bytes(os.urandom(8), "little") | 1).ljust(size, b"\0"))
        with open(path, "r+b") as file:
            self._working = mmap.mmap(file.fileno(), size)

    def _under_work(self, data: bytes) -> list[str]:
        found = []
        for at in range(_HEAD.size, len(data) - self._slot_bytes + 1, self._slot_bytes):
            (count,) = _COUNT.unpack_from(data, at)
            start = at + _COUNT.size
            found += [
                data[start + i * _DIGEST : start + (i + 1) * _DIGEST].hex() for i in range(min(count, MAX_TOGETHER))
            ]
        return found

    def _save(self) -> None:
        if self._folder is None:
            return
        try:
            write_atomically(self._folder / "strikes.json", msgspec.json.encode(self._ledger))
        except OSError as e:
            self.working = False
            log.error("strikes can't be written to %s (%s)", self._folder, e.strerror)
