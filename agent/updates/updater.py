"""Updates of all models of a device: when they are looked for, who asked, and what is told.

    updates = of(config)
    files = updates.recover()                   # by model: what to serve
    updates.start(live, tell)                   # tell(status): whenever one changes
    updates.ask("digits", "install", answer)    # from any thread; survives this process

Each model has a thread of its own, so that going back never waits for another model's probation.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from agent.config.tables import Config
from agent.config.tables import Updates as Settings
from agent.disk import Disk
from agent.errors import ConfigError, Int8dError
from agent.repository.find import Found
from agent.repository.reasons import Refused
from agent.repository.release import Target
from agent.updates import points, service
from agent.updates.install import Install
from agent.updates.journal import Journal, Record
from agent.updates.status import Reason, Status
from agent.updates.steps import Children
from agent.updates.store import Store
from agent.updates.wishes import Action, Answer, Wish, Wishes

log = logging.getLogger(__name__)
Tell = Callable[[Status], None]
_JITTER = 0.1  # of the interval, so that a fleet does not come as one


class Steps(service.Steps, Protocol):
    """``service.Steps``, and how releases are found."""

    def find(self, model: str, record: Record, wanted: int | None, stop: threading.Event) -> Found: ...


class Updates:
    """One process at a time has them. Raises ``ConfigError`` where another does."""

    def __init__(
        self, device: str, models: Iterable[str], store: Store, settings: Settings, steps: Steps, disk: Disk
    ) -> None:
        self.folder = folder = store.folder
        self._store = store
        self._finding = threading.Lock()  # they share TUF's folder
        self._lock = _lock(folder)
        self._turns = {
            model: _Turn(
                model,
                Install(device, model, self._store, Journal(self._store.of(model), disk), steps, settings),
                Wishes(self._store.of(model), disk, settings.max_wishes, settings.max_starts),
                steps, settings, self._finding, self._tidy,
            )
            for model in models
        }  # fmt: skip

    def recover(self) -> dict[str, Target | None]:
        """By model, what to serve; None: the file that int8d.toml names."""
        return {model: turn.recover() for model, turn in self._turns.items()}

    def unloadable(self, model: str, error: Int8dError) -> Target | None:
        """What to serve instead of what ``recover`` gave, which can't be loaded."""
        return self._turns[model].machine.unloadable(error)

    def file(self, target: Target) -> Path:
        """Where a release's file lies."""
        return self._store.file(target)

    def start(self, live: service.Service, tell: Tell) -> None:
        """Goes on with what is under way, looks for releases at each interval, and listens to ``ask``."""
        for turn in self._turns.values():
            turn.start(live, tell)

    def ask(self, model: str, action: Action, answer: Answer, release: int | None = None, message: str = "") -> None:
        """Has something done, in its turn, by this process or the next. answer(status, why not): once it has come to
        its end, from another thread. message: what asks, so that it is known where it comes again. Raises ``Refused``
        where too many wait already.
        """
        self._turn(model).ask(Wish(action, release, answer), message)

    def has_asked(self, model: str, message: str) -> bool:
        """Whether that message has been taken already."""
        return self._turn(model).wishes.known(message)

    def perform(self, model: str, action: Action, tell: Tell, release: int | None = None) -> Status:
        """Without ``start``: here and now; what is installed becomes pending. Raises ``Refused``."""
        for turn in self._turns.values():  # what the others need must not be tidied away
            turn.machine.read()
        return self._turn(model).perform(Wish(action, release), tell)

    def status(self, model: str) -> Status:
        """Of one model."""
        return self._turn(model).machine.status()

    def statuses(self) -> list[Status]:
        """Of each model."""
        return [turn.machine.status() for turn in self._turns.values()]

    def stop(self, timeout: float) -> None:
        """Ends what is under way, for the next start to go on with; waits for ``timeout`` seconds at most."""
        until = time.monotonic() + timeout
        for turn in self._turns.values():
            turn.end()
        for turn in self._turns.values():
            turn.join(max(0.0, until - time.monotonic()))
        self.close()

    def close(self) -> None:
        """Lets others have the folder."""
        os.close(self._lock)

    def _turn(self, model: str) -> _Turn:
        if model not in self._turns:
            raise Int8dError(f"no model '{model}'; there are: {', '.join(self._turns)}")
        return self._turns[model]

    def _tidy(self) -> None:
        keep: set[str] = set()
        for turn in self._turns.values():
            record = turn.machine.record
            under_way = record.target if record.under_way else None
            keep |= {t.sha256 for t in (record.committed, record.previous, under_way) if t is not None}
        try:
            self._store.tidy(keep)
            for model, turn in self._turns.items():
                record = turn.machine.record
                fetching = record.target if record.state == "fetching" else None
                self._store.tidy_staging(model, fetching.sha256 if fetching else "")
        except OSError as e:
            log.error("what is not needed any more can't be removed from %s: %s", self.folder, e)


def of(config: Config) -> Updates:
    """Of all models of a device. Raises ``ConfigError``, also where a package is missing."""
    _require_packages(config.updates)
    disk = Disk()
    store = Store(config.device_folder / "updates", disk)
    names = [m.name for m in config.model]
    return Updates(config.device, names, store, config.updates, Children(config, store), disk)


def _require_packages(settings: Settings) -> None:
    """Looked for, not imported: child processes do that, and they are no place to find it out."""
    wanted = ["tuf", "cryptography", *(["pyrage"] if settings.key else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"[updates] needs {' and '.join(missing)}, not installed here: pip install 'int8d[updates]'")


def _lock(folder: Path) -> int:
    """Of the folder itself, which needs no writing: a disk that has become read-only must not end the service."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise ConfigError(f"updates need a folder that can be written: {folder}: {e.strerror}") from e
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(descriptor)
        raise ConfigError(f"another process has the updates in {folder}: one int8d a device") from e
    return descriptor


class _Turn:
    """One model's thread."""

    def __init__(self, model: str, machine: Install, wishes: Wishes, steps: Steps, settings: Settings,
                 finding: threading.Lock, tidy: Callable[[], None]) -> None:  # fmt: skip
        self._model, self.machine, self.wishes = model, machine, wishes
        self._steps, self._settings, self._finding, self._tidy = steps, settings, finding, tidy
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # of the next, and of telling what is on its way to end
        self._updating = False
        self._thread = threading.Thread(target=self._run, name=f"update-{model}", daemon=True)

    def start(self, live: service.Service, tell: Tell) -> None:
        self.machine.attach(live, tell)
        self._thread.start()

    def recover(self) -> Target | None:
        """See ``Install.recover``; and what somebody wants to have taken back does not serve once more."""
        serving, machine = self.machine.recover(), self.machine
        self.wishes.read()
        target = machine.record.target
        if machine.record.under_way and target is not None and self.wishes.to_take_back(target.sha256):
            machine.give_up(Refused("by_hand"))
            return machine.record.serving
        return serving

    def ask(self, wish: Wish, message: str) -> None:
        points.reached("before asked")
        with self._lock:
            target, ends = self.machine.record.target, False
            if wish.action == "rollback" and self._updating and target is not None:
                ends = wish.release in (None, target.release.release)
            if ends and target is not None:
                wish.of = target.sha256
            try:
                self.wishes.put(wish, message)
                points.reached("after asked")
            finally:
                if ends:  # though too many wait: what goes wrong must not go on for that
                    self.machine.back_by_hand()

    def end(self) -> None:
        self._stopping.set()
        self.machine.end()
        self.wishes.wake()

    def join(self, timeout: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout)

    def perform(self, wish: Wish, tell: Tell) -> Status:
        self.machine.attach(None, tell)
        if wish.action == "rollback" and self.machine.record.under_way:
            self.machine.give_up(Refused("by_hand"))
            self._tidy()
        else:
            self._do(wish)
        return self.machine.status()

    def _run(self) -> None:
        self._tidy()
        self.machine.tell()
        record, interval = self.machine.record, self._settings.interval
        if record.under_way and record.state != "fetching":
            self._guarded(self._go_on)
        elif record.target is not None and record.state == "fetching" and not interval:
            # Somebody has asked for it; with an interval, the next check says whether it is due still.
            wanted = record.target.release.release
            self._guarded(lambda: self._install(wanted))
        due = time.monotonic() + random.uniform(0, min(interval, 60) * _JITTER) if interval else float("inf")
        while not self._stopping.is_set():
            try:
                wish = self.wishes.take(max(0.0, due - time.monotonic()) if interval else None)
            except queue.Empty:
                due = time.monotonic() + interval * random.uniform(1 - _JITTER, 1 + _JITTER)
                self._guarded(lambda: self._install(None))
                continue
            if wish is not None and not self._stopping.is_set():
                why = self._guarded(lambda wish=wish: self._do(wish))  # type: ignore[misc]
                if not (self._stopping.is_set() and why is not None and why.code == "interrupted"):
                    self.wishes.done(wish)
                wish.answer(self.machine.status(), why)

    def _guarded(self, action: Callable[[], None]) -> Refused | None:
        """Why it was refused, if so. A bug here must not end the thread, and with it the way back."""
        try:
            action()
        except Refused as e:
            return e
        except Exception as e:
            log.exception("model %s: its update failed", self._model)
            return Refused("internal", f"{type(e).__name__}: {e}")
        return None

    def _do(self, wish: Wish) -> None:
        if wish.action == "check":
            self._find(None)
            self.machine.tell()
        elif wish.action == "install":
            if self._begin(wish.release):
                self.wishes.done(wish)
                self._go_on()
        else:
            self._back(wish)

    def _install(self, wanted: int | None) -> None:
        """What is due, or the release that is wanted, to its end. Raises ``Refused`` for any but a good one."""
        if self._begin(wanted):
            self._go_on()

    def _back(self, wish: Wish) -> None:
        committed = self.machine.record.committed
        if wish.of is not None and (committed is None or committed.sha256 != wish.of):
            return  # it has been taken back
        if wish.release is not None and (committed is None or committed.release.release != wish.release):
            raise Refused("not_installed", f"release {wish.release} is not what serves here")
        if committed is not None:
            self.wishes.takes_back(wish, committed.sha256)
        self.machine.roll_back_committed(Refused("by_hand"))
        self._tidy()

    def _begin(self, wanted: int | None) -> bool:
        """Whether there is an update to go on with. Raises ``Refused``."""
        machine = self.machine
        if machine.record.under_way and machine.record.state != "fetching":
            self._go_on()
        found = self._find(wanted)
        if found.withdrawn and machine.record.committed is not None and found.target is None:
            machine.roll_back_committed(Refused("withdrawn", f"its publisher has withdrawn it: {found.withdrawn}"))
            self._tidy()
        target, record = found.target, machine.record
        if record.state == "fetching" and target is None:  # it was on its way, and is not for this device any more
            machine.give_up(Refused("withdrawn", found.why))
            self._tidy()
        if target is None or (record.committed is not None and target.sha256 == record.committed.sha256):
            machine.tell()
            return False
        if wanted is not None:
            machine.allow(target.sha256)
        if not (record.state == "fetching" and record.target == target):
            machine.begin(target)
        return True

    def _find(self, wanted: int | None) -> Found:
        machine = self.machine
        try:
            with self._finding:
                found = self._steps.find(self._model, machine.record, wanted, self._stopping)
        except Refused as e:
            if e.code != "interrupted":
                machine.repository = Reason(e.code, str(e))
                log.warning("model %s: no check of the repository: %s: %s", self._model, e.code, e)
                machine.tell()
            raise
        machine.repository, machine.checked_unix_s, machine.available = None, time.time(), found.target
        return found

    def _go_on(self) -> None:
        self._updating = True
        try:
            self.machine.go_on()
        finally:
            with self._lock:
                self._updating = False
                self.machine.settle()
        self._tidy()
        record = self.machine.record
        if record.state == "rolled_back" and record.reason is not None:
            raise Refused(record.reason.code, record.reason.message)
        if record.state == "fetching" and self.machine.repository is not None:
            raise Refused(self.machine.repository.code, self.machine.repository.message)
