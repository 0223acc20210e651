"""A TUF repository on disk: read and verified, changed in memory, written so that a reader never sees half of it.

    with opened(Path("repo"), Keys(Path("keys"))) as repository:
        repository.add("digits/3.int8.safetensors", data, custom)
        repository.commit("targets")

Snapshots are consistent: each version of a metadata file and each target has a name of its own, nothing that a client
may be reading changes, and ``timestamp.json``, which says what is current, is written last. A process that is killed
before that has changed nothing; what it left is written over.

What is read is verified against the root that the keys' folder began with: a repository that somebody else changed is
not signed again, but refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from agent.disk import Disk
from agent.errors import Int8dError
from agent.files import write_atomically
from agent.repository.release import ISSUED, Release, release_of
from models.repository.expiry import Expiry, after
from models.repository.keys import ONLINE, Keys

_KEPT = 8  # versions of snapshot and targets; a client that is reading an older one begins again
_LOCK_S = 60.0
_MAX_TARGETS = 5_000_000  # bytes of targets metadata that a client reads
Document = Metadata[Any]


@dataclass(frozen=True)
class Entry:
    """A release in the repository, and the file that holds it. path: the target's."""

    path: str
    file: TargetFile
    release: Release


class Repository:
    """What is in the folder, verified. Take it from ``opened``, which keeps other writers away.

    Raises ``Int8dError`` where there is no repository, or not one that these keys' root trusts.
    """

    def __init__(self, folder: Path, keys: Keys, expires: Expiry = Expiry(), create: bool = False) -> None:
        self.folder, self.keys, self.expires = folder, keys, expires
        self.metadata = folder / "metadata"
        self._roots = self._trusted_roots()
        self._dropped: list[Path] = []  # files that go with the next commit
        self._stale: set[str] = set()  # roles whose file is signed by the keys of the root before the newest
        if (self.metadata / "timestamp.json").exists():
            self._read()
        elif not create:
            raise Int8dError(f"{folder} is no repository yet: 'int8d-make publish' makes one")
        elif any(self.metadata.glob("[2-9]*.snapshot.json")):
            raise Int8dError(
                f"{self.metadata} has no timestamp.json, yet is no new repository: bring it back from a copy"
            )
        else:
            self.targets: Document = Metadata(Targets())
            self.snapshot: Document = Metadata(Snapshot())
            self.timestamp: Document = Metadata(Timestamp())
            self.new = True

    new = False  # nothing was committed yet

    @property
    def root(self) -> Document:
        """The newest root metadata."""
        return self._roots[-1]

    def releases(self) -> list[Entry]:
        """All releases, withdrawn ones too; by model, release and group."""
        entries = []
        for path, file in self.targets.signed.targets.items():
            release = release_of(file.custom)
            if release is not None:
                entries.append(Entry(path, file, release))
        return sorted(entries, key=lambda e: (e.release.model, e.release.release, e.release.device_group))

    def find(self, model: str, release: int, group: str | None = None) -> Entry:
        """group: None where the number says enough. Raises ``Int8dError`` where there is no such release."""
        named = [e for e in self.releases() if e.release.model == model]
        found = [e for e in named if e.release.release == release and group in (None, e.release.device_group)]
        if len(found) > 1:
            groups = ", ".join(e.release.device_group for e in found)
            raise Int8dError(f"there is a release {release} of '{model}' for each of {groups}: say --device-group")
        if not found:
            there = ", ".join(str(e.release.release) for e in named) or "none"
            whom = f" for group '{group}'" if group else ""
            raise Int8dError(f"there is no release {release} of '{model}'{whom}; there are: {there}")
        return found[0]

    def add(self, path: str, data: bytes, custom: dict[str, Any]) -> None:
        """Writes a target's file, and describes it in the metadata to come."""
        digest = hashlib.sha256(data).hexdigest()
        parent, _, name = path.rpartition("/")
        place = self.folder / "targets" / parent / f"{digest}.{name}"
        Disk().folder(place.parent)
        write_atomically(place, data)
        self.targets.signed.targets[path] = TargetFile(len(data), {"sha256": digest}, path, {"custom": custom})

    def describe(self, path: str, custom: dict[str, Any]) -> None:
        """Says something else of a target; its file stays."""
        self.targets.signed.targets[path].unrecognized_fields["custom"] = custom

    def drop(self, entry: Entry) -> None:
        """Tells of a target no more; its file goes once that is said."""
        del self.targets.signed.targets[entry.path]
        parent, _, name = entry.path.rpartition("/")
        self._dropped.append(self.folder / "targets" / parent / f"{entry.file.hashes['sha256']}.{name}")

    def commit(self, *changed: str, also: Mapping[str, Root] = MappingProxyType({})) -> list[str]:
        """Signs and writes the roles in ``changed``, those that must tell of them, and ``timestamp.json`` last. Gives
        the roles that were signed.

        also: of a role, a root whose keys sign it beside the newest root's. Raises ``Int8dError`` where a key is
        missing, before anything is written; OSError.
        """
        todo = set(ONLINE) if self.new else {*changed, *self._stale, "timestamp"}
        if "targets" in todo:
            todo.add("snapshot")
        roots = {role: (self.root.signed, also[role]) if role in also else (self.root.signed,) for role in ONLINE}
        self.require_keys()
        self._write_first_root()
        if "targets" in todo:
            data = self._signed("targets", self.targets, roots["targets"])
            if len(data) > _MAX_TARGETS:
                raise Int8dError(f"the list of releases has {len(data):,} bytes, and a device reads {_MAX_TARGETS:,}")
            self._write(f"{self.targets.signed.version}.targets.json", data)
            self.snapshot.signed.meta = {
                "targets.json": MetaFile.from_data(self.targets.signed.version, data, ["sha256"])
            }
        if "snapshot" in todo:
            data = self._signed("snapshot", self.snapshot, roots["snapshot"])
            self._write(f"{self.snapshot.signed.version}.snapshot.json", data)
            self.timestamp.signed.snapshot_meta = MetaFile.from_data(self.snapshot.signed.version, data, ["sha256"])
        self.timestamp.signed.unrecognized_fields[ISSUED] = int(time.time())
        self._write("timestamp.json", self._signed("timestamp", self.timestamp, roots["timestamp"]))
        self.new = False
        self._stale.clear()
        self._prune()
        return [role for role in ONLINE if role in todo]

    def require_keys(self) -> None:
        """Raises ``Int8dError`` where a key that ``commit`` needs is missing."""
        for role in ONLINE:
            self.keys.require(role, self.root.signed)

    def add_root(self, root: Document) -> None:
        """A new version of the root metadata, signed already; written at once."""
        path = self.metadata / f"{root.signed.version}.root.json"
        _verify(self.root, "root", root, path)
        _verify(root, "root", root, path)
        self._write_first_root()
        write_atomically(path, root.to_bytes())
        self._roots.append(root)

    def _write_first_root(self) -> None:
        """It comes from the keys' folder; it is there before anything that it signs for."""
        Disk().folder(self.metadata)
        first = self.metadata / f"{self._roots[0].signed.version}.root.json"
        if not first.exists():
            write_atomically(first, self.keys.root.read_bytes())

    def _signed(self, role: str, document: Document, roots: tuple[Root, ...]) -> bytes:
        signed: Signed = document.signed
        if document.signatures:
            signed.version += 1
        signed.expires = after(getattr(self.expires, role))
        self.keys.sign(role, document, *roots)
        return document.to_bytes()

    def _write(self, name: str, data: bytes) -> None:
        write_atomically(self.metadata / name, data)

    def _trusted_roots(self) -> list[Document]:
        """The chain of root metadata, each signed as the one before and it itself ask."""
        try:
            first = self.keys.root.read_bytes()
        except FileNotFoundError as e:
            raise Int8dError(
                f"there is no {self.keys.root}: 'int8d-make keys init {self.keys.folder}' makes keys"
            ) from e
        roots = [_parsed(first, self.keys.root, "root")]
        _verify(roots[0], "root", roots[0], self.keys.root)
        version = roots[0].signed.version
        theirs = self.metadata / f"{version}.root.json"
        if theirs.exists() and theirs.read_bytes() != first:
            raise Int8dError(f"{theirs} is not {self.keys.root}: this repository was made with other keys")
        while (path := self.metadata / f"{version + 1}.root.json").exists():
            version += 1
            root = _parsed(path.read_bytes(), path, "root")
            _verify(roots[-1], "root", root, path)
            _verify(root, "root", root, path)
            if root.signed.version != version:
                raise Int8dError(f"{path} says that it is version {root.signed.version}")
            roots.append(root)
        return roots

    def _read(self) -> None:
        self.timestamp = self._role("timestamp", "timestamp.json", None)
        meta: MetaFile = self.timestamp.signed.snapshot_meta
        self.snapshot = self._role("snapshot", f"{meta.version}.snapshot.json", meta)
        meta = self.snapshot.signed.meta["targets.json"]
        self.targets = self._role("targets", f"{meta.version}.targets.json", meta)

    def _role(self, role: str, name: str, meta: MetaFile | None) -> Document:
        path = self.metadata / name
        try:
            data = path.read_bytes()
            if meta is not None:
                meta.verify_length_and_hashes(data)
        except FileNotFoundError as e:
            raise Int8dError(f"{path} is missing: bring the repository back from a copy") from e
        except RepositoryError as e:
            raise Int8dError(f"{path} is not the file that was signed ({e}): somebody changed it") from e
        document = _parsed(data, path, role)
        try:
            _verify(self.root, role, document, path)
        except Int8dError:
            # A key was replaced without the old one at hand, and the process killed before it had signed with the new
            if len(self._roots) == 1:
                raise
            _verify(self._roots[-2], role, document, path)
            self._stale.add(role)
        return document

    def _prune(self) -> None:
        """Removes what no client needs, and what a process that was killed has left half written."""
        for path in self._dropped:
            path.unlink(missing_ok=True)
        self._dropped.clear()
        halves = (*self.metadata.glob(".*.json.*"), *(self.folder / "targets").rglob(".*.int8.safetensors*.*"))
        for path in halves:
            path.unlink()
        for role, document in (("snapshot", self.snapshot), ("targets", self.targets)):
            for path in self.metadata.glob(f"*.{role}.json"):
                version = path.name.split(".")[0]
                if version.isdecimal() and int(version) <= document.signed.version - _KEPT:
                    path.unlink()


@contextmanager
def opened(folder: Path, keys: Keys, expires: Expiry = Expiry(), create: bool = False) -> Iterator[Repository]:
    """The repository, while no other process may write it. create: makes it where there is none.

    Raises ``Int8dError`` as ``Repository`` does, or where another process writes it for longer than a minute.
    """
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise Int8dError(f"there is no folder {folder}: 'int8d-make publish' makes a repository")
    with open(folder / ".lock", "ab") as file:
        until = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Int8dError(f"another int8d-make is writing {folder}; wait until it has ended") from None
                time.sleep(0.05)
        yield Repository(folder, keys, expires, create)


def remaining_days(document: Document) -> float:
    """Until it expires; below zero once it has."""
    left = document.signed.expires.replace(tzinfo=UTC) - datetime.now(UTC)
    return float(left.total_seconds() / 86400)


def _parsed(data: bytes, path: Path, role: str) -> Document:
    try:
        document: Document = Metadata.from_bytes(data)
    except DeserializationError as e:
        raise Int8dError(f"{path} is damaged: bring the repository back from a copy") from e
    if document.signed.type != role:
        raise Int8dError(f"{path} holds metadata of role '{document.signed.type}'")
    return document


def _verify(delegator: Document, role: str, document: Document, path: Path) -> None:
    try:
        delegator.signed.verify_delegate(role, document.signed_bytes, document.signatures)
    except RepositoryError as e:
        raise Int8dError(
            f"{path} is not signed by the keys of '{role}': somebody changed it, or it belongs to other keys"
        ) from e
