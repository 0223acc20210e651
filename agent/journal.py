"""Records on disk, in order, until they are removed: what the outbox of replies and a sender's spool are made of.

    journal = Journal("/var/lib/int8d/outbox.db", max_bytes=64 << 20)
    journal.put(b"head", b"body", lambda seq: print("safe as", seq))
    for record in journal.read(after=0) or ():
        journal.remove(record.seq)
    journal.close()

SQLite with a write-ahead log and ``synchronous=FULL``: what was reported as stored outlives a power cut. A commit waits
for the disk, so a thread commits whatever has gathered while the commit before it was under way (group commit): many
records together take little longer than one. ``NORMAL`` would not wait, and lose the last seconds, which is what a
journal is there to prevent.

A damaged file is moved aside and a new one begun. Where the disk is full or not writable, records are refused, and the
journal tries again by itself.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)
Stored = Callable[[int | None], None]

_OVERHEAD = 64  # bytes that SQLite takes for a record, about
_LINGER_S = 0.2  # removals alone are in no hurry: they wait for a record to be committed with
_RETRY_S = 1.0  # how long a disk that failed is left alone
_AGE_CHECK_S = 1.0
_SHRINK_ABOVE = 8 << 20
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS record (seq INTEGER PRIMARY KEY, stored_us INTEGER NOT NULL, aged_us INTEGER NOT NULL,"
    " size INTEGER NOT NULL, head BLOB NOT NULL, body BLOB NOT NULL)"
)


class Record(NamedTuple):
    """stored_us: when, in Unix microseconds, of this box's clock."""

    seq: int
    stored_us: int
    head: bytes
    body: bytes


class Journal:
    """Safe to use from several threads; one process at a time.

    max_bytes: past it, ``put`` refuses, or, with ``drop_oldest``, the oldest records are dropped. max_age_s: older
    records are dropped; measured by the monotonic clock while the process runs, because the clocks of small boxes jump.
    dropped(reason, count): called after each drop, on the journal's thread, with ``bytes`` or ``age``.
    wall_ns, clock: Unix time in nanoseconds, and monotonic seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int,
        max_age_s: float | None = None,
        drop_oldest: bool = False,
        dropped: Callable[[str, int], None] = lambda reason, count: None,
        wall_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path)
        self._max_bytes, self._max_age_s, self._drop_oldest = max_bytes, max_age_s, drop_oldest
        self._dropped, self._wall_ns, self._clock = dropped, wall_ns, clock
        self.keep_until = 0  # records up to this one are under way, and are not dropped
        self.count = self.bytes = self.last = 0  # of the records; the number of the last
        self.corrupt = 0  # files that were moved aside
        self.failure: str | None = None  # why records are refused at present, if they are
        self._db: sqlite3.Connection | None = None
        self._db_lock = threading.Lock()
        self._retry_at = self._next_age_check = -math.inf
        self._age_due = False
        self._age_zero_us, self._opened = 0, clock()
        self._largest = 0
        self._puts: list[tuple[bytes, bytes, Stored]] = []
        self._removals: list[int] = []
        self._gone: set[int] = set()  # removed, but not committed yet
        self._queue = threading.Condition()
        self._closing = False
        with self._db_lock:
            if not self._usable() and self.failure is None:  # damaged, and moved aside
                self._usable()
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()

    def put(self, head: bytes, body: bytes, stored: Stored) -> None:
        """Stores a record. stored(seq) once it is safe; stored(None) where it can't be. On the journal's thread, in
        order; it must be quick.
        """
        with self._queue:
            if not self._closing:
                self._puts.append((head, body, stored))
                self._queue.notify()
                return
        stored(None)

    def remove(self, seq: int) -> None:
        """Forgets a record, soon; where there is none, nothing happens."""
        with self._queue:
            self._gone.add(seq)
            self._removals.append(seq)
            if len(self._removals) == 1:
                self._queue.notify()

    def read(self, after: int, count: int = 64, size: int = 1 << 20) -> list[Record] | None:
        """At most ``count`` records behind number ``after``, in order, and of about ``size`` bytes at most, but one at
        least if there is one. None where the file can't be read at present.
        """
        found: list[Record] = []
        with self._db_lock:
            try:
                if self._db is None:
                    return None
                rows = self._db.execute(
                    "SELECT seq, stored_us, head, body FROM record WHERE seq > ? ORDER BY seq", (after,)
                )
                for row in rows:
                    if row[0] in self._gone:
                        continue
                    found.append(Record(*row))
                    size -= len(row[2]) + len(row[3])
                    if size <= 0 or len(found) == count:
                        break
                rows.close()
            except sqlite3.Error as e:
                self._failed(e)
                return None
        return found

    def close(self) -> None:
        """Stores what was put, and closes the file."""
        with self._queue:
            if self._closing:
                return
            self._closing = True
            self._queue.notify()
        self._writer.join()
        with self._db_lock:
            self._disconnect()

    # The journal's thread

    def _write(self) -> None:
        while True:
            with self._queue:
                if not self._puts and not self._closing:
                    self._queue.wait(_LINGER_S if self._removals else _AGE_CHECK_S)
                    if self._removals and not self._puts and not self._closing:
                        self._queue.wait(_LINGER_S)
                puts, self._puts = self._puts, []
                removals, self._removals = self._removals, []
                closing = self._closing
            outcome = self._commit(puts, removals)
            for (_, _, stored), seq in zip(puts, outcome, strict=True):
                try:
                    stored(seq)
                except Exception:
                    log.exception("%s: a callback failed", self._path)
            if closing:
                return

    def _commit(self, puts: list[tuple[bytes, bytes, Stored]], removals: list[int]) -> list[int | None]:
        """One transaction. The number of each record, or None where it was refused."""
        outcome: list[int | None] | None = None
        drops: dict[str, int] = {}
        with self._db_lock:
            self._age_due = self._max_age_s is not None and self.count > 0 and self._clock() >= self._next_age_check
            if not puts and not removals and not self._age_due:
                return []
            for _ in range(2):  # once more, where the file turns out to be damaged and a new one is begun
                if outcome is None and self._usable():
                    try:
                        outcome = self._transaction(puts, removals, drops)
                        self._shrink()
                    except sqlite3.Error as e:
                        self._failed(e)
            if outcome is not None and self.failure is not None:
                log.warning("%s: stores again", self._path)
                self.failure = None
        if outcome is None:
            with self._queue:
                self._removals += removals
            return [None] * len(puts)
        self._gone.difference_update(removals)
        for reason, count in drops.items():
            if count:
                self._dropped(reason, count)
        return outcome

    def _transaction(
        self, puts: list[tuple[bytes, bytes, Stored]], removals: list[int], drops: dict[str, int]
    ) -> list[int | None]:
        db = self._db
        assert db is not None
        count, held, last, now_us = self.count, self.bytes, self.last, self._aged_us()
        outcome: list[int | None] = []
        gone: list[int] = []  # sizes
        db.execute("BEGIN IMMEDIATE")
        try:
            for seq in removals:
                gone += self._delete("seq = ?", seq)
            count, held = count - len(gone), held - sum(gone)
            for head, body, _ in puts:
                size = len(head) + len(body) + _OVERHEAD
                if size > self._max_bytes or (not self._drop_oldest and held + size > self._max_bytes):
                    outcome.append(None)
                    continue
                count, held, last = count + 1, held + size, last + 1
                values = (last, self._wall_ns() // 1000, now_us, size, head, body)
                db.execute("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?)", values)
                outcome.append(last)
            self._largest = max(self._largest, held)
            if self._age_due:
                assert self._max_age_s is not None
                oldest_us = now_us - round(self._max_age_s * 1e6)
                gone = self._delete("seq > ? AND aged_us < ?", self.keep_until, oldest_us)
                count, held, drops["age"] = count - len(gone), held - sum(gone), len(gone)
            if held > self._max_bytes:
                gone = self._delete("seq > ? AND seq <= ?", self.keep_until, self._oldest(held - self._max_bytes))
                count, held, drops["bytes"] = count - len(gone), held - sum(gone), len(gone)
            db.execute("COMMIT")
        except BaseException:
            drops.clear()
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.count, self.bytes, self.last = count, held, last
        if self._age_due:
            assert self._max_age_s is not None
            self._next_age_check = self._clock() + min(_AGE_CHECK_S, self._max_age_s / 10)
        return outcome

    def _delete(self, where: str, *values: int) -> list[int]:
        """The sizes of what it deletes."""
        assert self._db is not None
        sql = f"DELETE FROM record WHERE {where} RETURNING size"
        return [size for (size,) in self._db.execute(sql, values).fetchall()]

    def _oldest(self, size: int) -> int:
        """The number up to which the oldest records that are not under way make up ``size`` bytes."""
        assert self._db is not None
        rows = self._db.execute("SELECT seq, size FROM record WHERE seq > ? ORDER BY seq", (self.keep_until,))
        last = 0
        for seq, one in rows:
            last, size = seq, size - one
            if size <= 0:
                break
        rows.close()
        return last

    def _shrink(self) -> None:
        """A file that a long outage made large gives the disk its space back once it is empty."""
        if self.count == 0 and self._largest > _SHRINK_ABOVE:
            assert self._db is not None
            self._largest = 0
            self._db.execute("VACUUM")

    # The file

    def _usable(self) -> bool:
        """Whether the file is open; opens it where it is not, and it is time to try."""
        if self.failure is not None and self._clock() < self._retry_at:
            return False
        if self._db is None:
            try:
                self._connect()
            except sqlite3.Error as e:
                self._failed(e)
        return self._db is not None

    def _connect(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise sqlite3.OperationalError(f"{self._path.parent}: {e.strerror}") from e
        db = self._db = sqlite3.connect(self._path, timeout=0.2, isolation_level=None, check_same_thread=False)
        os.chmod(self._path, 0o600)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # one process; and no shared memory file
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {_SHRINK_ABOVE}")
        db.execute(_SCHEMA)
        self.count, held, last, newest = db.execute(
            "SELECT count(*), total(size), max(seq), max(aged_us) FROM record").fetchone()  # fmt: skip
        self.bytes, self.last = int(held), max(self.last, last or 0)
        self._largest = self.bytes
        self._opened = self._clock()
        self._age_zero_us = max(self._wall_ns() // 1000, newest or 0)

    def _aged_us(self) -> int:
        """Microseconds on a clock that never goes back, and that does not jump while the process runs."""
        return self._age_zero_us + round((self._clock() - self._opened) * 1e6)

    def _failed(self, error: sqlite3.Error) -> None:
        """Damaged: begins a new file. Anything else, for example a full disk: leaves it alone for a while."""
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            self._disconnect()
            aside = self._path.with_name(self._path.name + ".corrupt")
            log.error("%s: damaged (%s); moved to %s, and a new one begun: what it held is not replayed",
                      self._path, error, aside.name)  # fmt: skip
            self.corrupt += 1
            try:
                os.replace(self._path, aside)
                for suffix in ("-wal", "-shm", "-journal"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            except OSError as e:
                error = sqlite3.OperationalError(f"can't be moved aside: {e.strerror}")
            else:
                return
        if self.failure is None:
            log.error("%s: can't store (%s); trying again every %g s", self._path, error, _RETRY_S)
        self.failure = str(error)
        self._retry_at = self._clock() + _RETRY_S
        if self._db is not None and not self._works():
            self._disconnect()

    def _works(self) -> bool:
        """Whether the open file can still be read."""
        assert self._db is not None
        try:
            self._db.execute("SELECT max(seq) FROM record").fetchone()
        except sqlite3.Error:
            return False
        return True

    def _disconnect(self) -> None:
        if self._db is not None:
            try:
                self._db.close()
            except sqlite3.Error as e:
                log.warning("%s: %s", self._path, e)
            self._db = None
