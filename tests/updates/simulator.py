"""A TUF repository whose publisher does as the test says: signs with any key, any version, any date.

sim = Simulator(folder)
sim.add(1, b"a model")
sim.publish()                    # new targets, snapshot and timestamp metadata, in ``folder/metadata``
old = sim.copy(elsewhere)        # a state to roll back to
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.repository.release import ISSUED, Release, custom_of

ROLES = ("root", "timestamp", "snapshot", "targets")


class Simulator:
    """root_file: what a device trusts at first. signers: by role, whose signatures the next ``publish`` makes. expires:
    by role. Of two root keys and two targets keys both must sign.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "metadata").mkdir(parents=True)
        self.root = Metadata(Root(consistent_snapshot=True))
        self.targets, self.snapshot, self.timestamp = Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp())
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.expires = dict.fromkeys(ROLES, datetime.now(UTC).replace(microsecond=0) + timedelta(days=30))
        self.issued = time.time()
        for role in ROLES:
            self.give_keys(role, 2 if role in ("root", "targets") else 1)
        self.targets.signed.version = self.snapshot.signed.version = self.timestamp.signed.version = 0
        self.root_file = folder.parent / "root.json"
        self.write_root()
        self.root_file.write_bytes(self.root.to_bytes())

    def give_keys(self, role: str, count: int = 1) -> None:
        """New keys instead of a role's, all of which must sign; the root is yet to be written."""
        for key in list(self.root.signed.roles[role].keyids):
            self.root.signed.revoke_key(key, role)
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in range(count)]
        for signer in self.signers[role]:
            self.root.signed.add_key(signer.public_key, role)
        self.root.signed.roles[role].threshold = count

    def write_root(self, also: list[CryptoSigner] | None = None) -> None:
        """also: the signers of the root before."""
        self._sign("root", self.root, also)
        (self.folder / "metadata" / f"{self.root.signed.version}.root.json").write_bytes(self.root.to_bytes())

    def rotate(self, *roles: str) -> None:
        """Properly: a new root, signed by the old root keys and the new ones."""
        before = self.signers["root"]
        for role in roles:
            self.give_keys(role, len(self.signers[role]))
        self.root.signed.version += 1
        self.write_root(before)

    def add(self, number: int, data: bytes, **custom: Any) -> None:
        release = Release("digits", number, **custom)
        digest = hashlib.sha256(data).hexdigest()
        place = self.folder / "targets" / "digits" / f"{digest}.{number}.int8.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        path = f"digits/{number}.int8.safetensors"
        described = {"custom": custom_of(release)}
        self.targets.signed.targets[path] = TargetFile(len(data), {"sha256": digest}, path, described)

    def publish(self, *roles: str) -> None:
        """roles: those that get a new version; default: all but the root."""
        roles = roles or ("targets", "snapshot", "timestamp")
        if "targets" in roles:
            data = self._next("targets", self.targets)
            self.snapshot.signed.meta = {
                "targets.json": MetaFile.from_data(self.targets.signed.version, data, ["sha256"])
            }
        if "snapshot" in roles:
            data = self._next("snapshot", self.snapshot)
            self.timestamp.signed.snapshot_meta = MetaFile.from_data(self.snapshot.signed.version, data, ["sha256"])
        if "timestamp" in roles:
            self.timestamp.signed.unrecognized_fields[ISSUED] = int(self.issued)
            self._next("timestamp", self.timestamp)

    def copy(self, folder: Path) -> Path:
        """The files, as they are now."""
        return Path(shutil.copytree(self.folder, folder))

    def fork(self, folder: Path) -> Simulator:
        """Another publisher with all the keys: an attacker who stole them."""
        twin = copy.copy(self)
        twin.folder = self.copy(folder)
        for role in ROLES:
            setattr(twin, role, copy.deepcopy(getattr(self, role)))
        twin.signers, twin.expires = dict(self.signers), dict(self.expires)
        return twin

    def path(self, role: str) -> Path:
        """Of a role's present file."""
        version = "" if role == "timestamp" else f"{getattr(self, role).signed.version}."
        return self.folder / "metadata" / f"{version}{role}.json"

    def _next(self, role: str, metadata: Metadata[Any]) -> bytes:
        metadata.signed.version += 1
        self._sign(role, metadata)
        data = metadata.to_bytes()
        self.path(role).write_bytes(data)
        return data

    def _sign(self, role: str, metadata: Metadata[Any], also: list[CryptoSigner] | None = None) -> None:
        metadata.signed.expires = self.expires[role]
        metadata.signatures.clear()
        for signer in (also or []) + self.signers[role]:
            metadata.sign(signer, append=True)
