"""The way of one model's update: fetched, tested, pending, committed; any failure, rolled back.

    machine = Install(device, model, store, journal, steps, settings)
    machine.recover()          # at the start: what to serve
    machine.attach(service, tell)
    machine.begin(target)
    machine.go_on()            # to its end

Each step is written to the journal before it is taken, so that a process that dies anywhere is followed by one that
serves the old model or the new one, whole, and goes on or back. What is in service is touched by nothing before the
switch, which happens between two requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from agent.disk import of_disk
from agent.errors import Int8dError
from agent.repository.reasons import Refused
from agent.repository.release import Target
from agent.updates import points
from agent.updates.journal import Journal, Record, refused, status, version
from agent.updates.service import Service, Settings, Steps
from agent.updates.status import Reason, Status
from agent.updates.store import Store

log = logging.getLogger(__name__)
# No fault of the release: it may be tried again by itself.
PASSING = frozenset({"unreachable", "not_found", "not_a_repository", "too_slow", "truncated", "endless_data", "damaged",
                     "no_space", "disk", "clock", "expired", "interrupted", "withdrawn"})  # fmt: skip
PASSING_LATER = frozenset({"no_space", "disk", "interrupted"})  # once the file is here
_TELL_S = 0.5  # progress is told that often at most


class Install:
    """Of one model. Without a service, an update ends as pending, and the next start of one goes on. Used by one
    thread; others may call ``end`` and ``back_by_hand``.
    """

    def __init__(
        self, device: str, model: str, store: Store, journal: Journal, steps: Steps, settings: Settings
    ) -> None:
        self._device, self._model = device, model
        self._store, self._journal, self._steps = store, journal, steps
        self._settings = settings
        self._service: Service | None = None
        self._tell_whom: Callable[[Status], None] = lambda status: None
        self._done, self._told = 0, 0.0
        self.available: Target | None = None  # what the last check found to be due
        self.repository: Reason | None = None  # why the last check failed
        self.checked_unix_s = 0.0
        self._stop = threading.Event()
        self._by_hand = self._ending = False

    def attach(self, service: Service | None, tell: Callable[[Status], None]) -> None:
        """Who serves, and who is told the status whenever it changes."""
        self._service, self._tell_whom = service, tell

    @property
    def record(self) -> Record:
        """What the journal says."""
        return self._journal.record

    def status(self) -> Status:
        """Where the update stands."""
        found = status(self._device, self._model, self.record)
        state = self.record.state
        done = self._done if state == "fetching" else found.bytes if state != "idle" else 0
        return msgspec.structs.replace(
            found,
            bytes_done=done,
            available=None if self.available is None else version(self.available),
            repository=self.repository,
            checked_unix_s=self.checked_unix_s,
        )

    def tell(self) -> None:
        """Tells the status now."""
        self._told = time.monotonic()
        self._tell_whom(self.status())

    # At the start

    def read(self) -> None:
        """What the journal says, or where it can't be read, the links."""
        self._journal.read()
        if self._journal.damaged:
            current, previous = self._store.current(self._model), self._store.previous(self._model)
            floor = max((t.release.release for t in (current, previous) if t is not None), default=0)
            self._note(state="idle", committed=current, previous=previous, floor=floor)

    def recover(self) -> Target | None:
        """What shall serve now: whole, and the old one where the new one has failed too often. None: int8d.toml's own
        file. Mends links, counts the attempt, and never raises for a disk that can't be written.
        """
        self.read()
        record = self.record
        if record.state == "pending" and record.switched:
            record = self._another_start(record)
        if record.serving is not None and not self._store.has(record.serving):
            record = self._fall_back(record, "damaged", "the file on the disk is not what was signed")
        self._mend(record)
        return record.serving

    def unloadable(self, error: Int8dError) -> Target | None:
        """What shall serve instead, because what ``recover`` gave can't be loaded."""
        code = error.code if isinstance(error, Refused) else "not_a_model"
        record = self._fall_back(self.record, code, str(error))
        self._mend(record)
        return record.serving

    def _another_start(self, record: Record) -> Record:
        assert record.target is not None
        if record.starts >= self._settings.max_starts:
            why = Refused("failed_starts", f"{record.starts} starts, and no probation came to its end")
            log.warning("model %s: release %s goes back: %s: %s", self._model, _name(record.target), why.code, why)
            return self._roll_back(why)
        try:
            return self._journal.write(starts=record.starts + 1)
        except OSError as e:  # what can't be counted must not be tried: it might end us each time
            return self._roll_back(of_disk(e))

    def _fall_back(self, record: Record, code: str, why: str) -> Record:
        """From what can't serve to what served before it."""
        if record.state == "pending" and record.switched:
            record = self._roll_back(Refused(code, why))
            if record.serving is None or self._store.has(record.serving):
                return record
        damaged, previous = record.committed, record.previous
        log.error("model %s: release %s can't serve (%s)", self._model, _name(damaged), why)
        sound = previous if previous is not None and self._store.has(previous) else None
        floor = record.floor
        if code == "damaged" and damaged is not None:  # to be fetched once more
            floor = min(floor, damaged.release.release - 1)
        return self._note(state="rolled_back", target=damaged, committed=sound, previous=None, switched=False,
                          floor=floor, reason=Reason(code, why))  # fmt: skip

    def _mend(self, record: Record) -> None:
        serving = record.serving
        previous = record.committed if serving is not record.committed else record.previous
        try:
            self._store.lead(self._model, serving, previous)
        except OSError as e:
            log.error("model %s: the links can't be mended (%s)", self._model, e.strerror)

    # An update

    def begin(self, target: Target) -> None:
        """A release that is due. Raises ``Refused`` where it can't be noted."""
        points.reached("before begin")
        self._done = 0
        try:
            self._journal.write(state="fetching", step="fetch", target=target, switched=False, starts=0, reason=None,
                                test={}, shadow={}, probation={})  # fmt: skip
        except OSError as e:
            why = of_disk(e)
            self._say(why)  # nobody may have asked, so that the status must
            raise why from e
        points.reached("after begin")
        self.tell()

    def go_on(self) -> None:
        """From where it stands to its end, or to where it has to wait. What it fails of is in the record."""
        steps = {"fetching": self._fetch, "fetched": self._test, "tested": self._accept, "pending": self._pending}
        try:
            while self.record.under_way and steps[self.record.state]():
                self.tell()
        except Refused as e:
            self._failed(e)
        except OSError as e:
            self._failed(of_disk(e))
        except Int8dError as e:
            self._failed(Refused("not_a_model", str(e)))
        self.tell()

    def _fetch(self) -> bool:
        target = self._target()
        if not self._store.has(target):
            part = self._store.part(self._model, target.sha256)
            self._store.tidy_staging(self._model, target.sha256)
            points.reached("before fetch")
            self._steps.fetch(target, part, self._progress, self._stop)
            points.reached("after fetch")
            self._store.put(self._model, target)
        points.reached("before fetched")
        self._journal.write(state="fetched", step="test")
        points.reached("after fetched")
        return True

    def _test(self) -> bool:
        target = self._target()
        points.reached("before test")
        measured = self._steps.test(self._model, target, self._store.file(target), self.record.committed, self._stop)
        points.reached("after test")
        self._journal.write(state="tested", step="", test=measured)
        points.reached("after tested")
        return True

    def _accept(self) -> bool:
        points.reached("before pending")
        self._journal.write(state="pending", step="load", switched=False, starts=0)
        points.reached("after pending")
        return True

    def _pending(self) -> bool:
        if self._service is None:
            return False
        if not self.record.switched:
            self._bring_in(self._service)
        self._journal.remember(step="probation")
        self.tell()
        points.reached("before probation")
        while True:
            self._service.probation(self._model, self._probation, self._stop)
            self._check()
            points.reached("after probation")
            try:
                self._commit(self._service)
            except OSError as e:  # no fault of the release: it stays on probation until there is room to note its end
                self._say(of_disk(e))
                self._stop.wait(_TELL_S)
            else:
                return False

    def _bring_in(self, service: Service) -> None:
        record, target = self.record, self._target()
        if record.starts >= self._settings.max_starts:
            raise Refused("failed_starts", f"{record.starts} attempts to load it, and none came to its end")
        self._journal.write(starts=record.starts + 1, step="load")
        self.tell()
        points.reached("before load")
        service.load(self._model, target)
        points.reached("after load")
        self._journal.remember(step="shadow")
        self.tell()
        service.shadow(self._model, self._shadow, self._stop)
        self._check()
        points.reached("before switch")
        self._journal.write(switched=True, step="switch")
        points.reached("in the middle of switch")
        self._store.lead(self._model, target, self.record.committed)
        service.switch(self._model)
        points.reached("after switch")

    def _commit(self, service: Service) -> None:
        record, target = self.record, self._target()
        points.reached("before commit")
        number = max(record.floor, target.release.release)
        record = self._journal.write(state="committed", step="", committed=target, previous=record.committed,
                                     switched=False, floor=number, reason=None)  # fmt: skip
        points.reached("in the middle of commit")
        self.repository = None
        self._mend(record)  # it is committed, whatever becomes of the links
        service.keep(self._model)
        points.reached("after commit")
        log.info("model %s: release %d is committed", self._model, number)

    def _check(self) -> None:
        """Raises where somebody wants it to end."""
        if self._by_hand:
            raise Refused("by_hand")
        if self._stop.is_set():
            raise Refused("interrupted")

    def _target(self) -> Target:
        assert self.record.target is not None
        return self.record.target

    # Its end, if not a good one

    def _failed(self, why: Refused) -> None:
        if self._by_hand and why.code == "interrupted":
            why = Refused("by_hand")
        record = self.record
        log.warning("model %s: release %s, %s: %s: %s", self._model, _name(record.target), record.state, why.code, why)
        passing = PASSING if record.state == "fetching" else PASSING_LATER
        if why.code == "interrupted" or (why.code in passing and not record.starts):
            if why.code != "interrupted":
                self.repository = Reason(why.code, str(why))
            elif record.state == "pending" and record.starts:  # a stop in good order is no failed start
                self._note(starts=record.starts - 1)
            return
        self._roll_back(why)

    def _roll_back(self, why: Refused) -> Record:
        """The committed one serves; what failed by its own fault is not tried again by itself."""
        record, target = self.record, self._target()
        points.reached("before rollback")
        reason = Reason(why.code, str(why))
        tried = record.refused if why.code in PASSING else refused(record, target.sha256, reason)
        record = self._note(state="rolled_back", step="", switched=False, reason=reason, refused=tried)
        points.reached("in the middle of rollback")
        self._mend(record)
        if self._service is not None:
            try:
                self._service.back(self._model, record.committed)
            except Int8dError as e:  # after a restart it is not in memory any more, and now it can't be loaded
                self._service.back(self._model, self.unloadable(e))
                record = self.record
        points.reached("after rollback")
        return record

    def roll_back_committed(self, why: Refused) -> None:
        """From the committed release to the one before it. Raises ``Refused`` where that can't be."""
        record = self.record
        if record.committed is None:
            raise Refused("not_installed", f"model '{self._model}' runs the file that int8d.toml names")
        before = record.previous
        if before is not None and not self._store.has(before):
            raise Refused("not_installed", f"release {_name(before)} is not on the disk any more, or is damaged")
        if self._service is not None:
            try:
                self._service.load(self._model, before)
            except Int8dError as e:
                raise Refused("not_a_model", f"release {_name(before)} can't be loaded: {e}") from e
        points.reached("before rollback")
        reason = Reason(why.code, str(why))
        self._note(state="rolled_back", step="", target=record.committed, committed=before, previous=None,
                   switched=False, reason=reason,
                   refused=refused(record, record.committed.sha256, reason))  # fmt: skip
        points.reached("in the middle of rollback")
        self._mend(self.record)
        if self._service is not None:
            self._service.switch(self._model)
            self._service.keep(self._model)
        points.reached("after rollback")
        self.tell()

    def give_up(self, why: Refused) -> None:
        """Rolls what is under way back, where nobody is at it."""
        self._roll_back(why)
        self.tell()

    def end(self) -> None:
        """The service ends: what is under way stops where it is, and is gone on with by the next one."""
        self._ending = True
        self._stop.set()

    def back_by_hand(self) -> None:
        """What is under way is rolled back."""
        self._by_hand = True
        self._stop.set()

    def settle(self) -> None:
        """What was under way is over, one way or the other: ``back_by_hand`` was about that alone."""
        if self._by_hand:
            self._by_hand = False
            if not self._ending:
                self._stop.clear()

    def allow(self, sha256: str) -> None:
        """A release that was rolled back here may be tried again, because somebody asks for it."""
        if sha256 in self.record.refused:
            self._note(refused={k: v for k, v in self.record.refused.items() if k != sha256})

    def _note(self, **changes: object) -> Record:
        """Writes, or where that can't be done, remembers: serving must go on."""
        try:
            return self._journal.write(**changes)
        except OSError as e:
            log.error("model %s: the journal can't be written (%s)", self._model, e.strerror)
            return self._journal.remember(**changes)

    # What is told on the way

    def _say(self, why: Refused) -> None:
        """What is in the way, and is not the release's fault."""
        log.warning("model %s: release %s waits: %s: %s", self._model, _name(self.record.target), why.code, why)
        self.repository = Reason(why.code, str(why))
        self.tell()

    def _progress(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._told >= _TELL_S:
            self.tell()

    def _shadow(self, found: dict[str, float]) -> None:
        self._journal.remember(shadow=found)
        self._tell_sparingly()

    def _probation(self, found: dict[str, float]) -> None:
        self._journal.remember(probation=found)
        self._tell_sparingly()

    def _tell_sparingly(self) -> None:
        if time.monotonic() - self._told >= _TELL_S:
            self.tell()


def _name(target: Target | None) -> str:
    return "0 (int8d.toml's own file)" if target is None else str(target.release.release)
