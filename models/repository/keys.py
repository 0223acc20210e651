"""Who may sign what: a folder of private keys, those of root apart from those that sign each day.

    keys/root.json              the first root metadata, signed: what each device trusts at first (``updates.root``)
    keys/root/root-<id>.pem     to say which keys count; away from this machine but when a key is replaced
    keys/online/targets-<id>.pem, snapshot-<id>.pem, timestamp-<id>.pem

A key file is a PKCS#8 PEM of an Ed25519 key with mode 0600, is named after its role and its id in the metadata, and is
never overwritten. A missing ``root/`` hinders neither publishing nor refreshing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from agent.errors import Int8dError
from agent.files import write_atomically
from models.repository.expiry import Expiry, after

ONLINE = ("targets", "snapshot", "timestamp")
ROLES = ("root", *ONLINE)
_ID = 16  # of the 64 digits of a key's id, in file names and messages


class Keys:
    """The keys in a folder. passphrase: of the root keys, if they have one."""

    def __init__(self, folder: Path, passphrase: bytes | None = None) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._found: dict[str, dict[str, CryptoSigner]] = {}

    @property
    def root(self) -> Path:
        """The first root metadata."""
        return self.folder / "root.json"

    def of(self, role: str) -> dict[str, CryptoSigner]:
        """All keys of a role that are here, by id; whether they count, the root metadata says. Raises ``Int8dError``
        for a file that can't be read.
        """
        if role not in self._found:
            signers = [self._load(path) for path in sorted(self._place(role).glob(f"{role}-*.pem"))]
            self._found[role] = {signer.public_key.keyid: signer for signer in signers}
        return self._found[role]

    def sign(self, role: str, metadata: Metadata[Any], *roots: Root) -> None:
        """Signs with each key of the role that is here and that one of ``roots`` names, instead of what was signed.
        Raises ``Int8dError`` where that is fewer than a root's threshold for the role.
        """
        for root in roots:
            self.require(role, root)
        named = {keyid for root in roots for keyid in root.roles[role].keyids}
        metadata.signatures.clear()
        for keyid, signer in self.of(role).items():
            if keyid in named:
                metadata.sign(signer, append=True)

    def require(self, role: str, root: Root) -> None:
        """Raises ``Int8dError`` where fewer keys of the role are here than its threshold."""
        wanted = root.roles[role]
        here = [keyid for keyid in wanted.keyids if keyid in self.of(role)]
        if len(here) >= wanted.threshold:
            return
        missing = ", ".join(f"{role}-{keyid[:_ID]}.pem" for keyid in wanted.keyids if keyid not in here)
        cure = f"put it back into {self._place(role)}"
        if role in ONLINE:
            cure += f", or replace it with 'int8d-make repo rotate {role}', which needs the root keys"
        raise Int8dError(
            f"{len(here)} of {role}'s keys are in {self._place(role)}, and it takes {wanted.threshold} to sign; "
            f"missing: {missing}; {cure}"
        )

    def add(self, role: str) -> CryptoSigner:
        """Makes a key and writes its file. Raises OSError."""
        from cryptography.hazmat.primitives import serialization

        signer = CryptoSigner.generate_ed25519()
        if self._passphrase and role == "root":
            lock: Any = serialization.BestAvailableEncryption(self._passphrase)
        else:
            lock = serialization.NoEncryption()
        pem = serialization.load_pem_private_key(signer.private_bytes, None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock
        )
        place = self._place(role)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(place / f"{role}-{signer.public_key.keyid[:_ID]}.pem", pem, 0o600)
        self.of(role)[signer.public_key.keyid] = signer
        return signer

    def forget(self, role: str, keyid: str) -> Path | None:
        """Renames a key that no longer counts to ``….pem.old``, which nothing reads. Gives the new name."""
        path = self._place(role) / f"{role}-{keyid[:_ID]}.pem"
        self.of(role).pop(keyid, None)
        if not path.exists():
            return None
        old = path.with_name(f"{path.name}.old")
        os.replace(path, old)
        return old

    def _place(self, role: str) -> Path:
        return self.folder / ("root" if role == "root" else "online")

    def _load(self, path: Path) -> CryptoSigner:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        pem = path.read_bytes()
        passphrase = self._passphrase if b"ENCRYPTED" in pem else None
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except TypeError as e:
            raise Int8dError(f"{path} is locked with a passphrase: give --passphrase-file FILE") from e
        except ValueError as e:
            what = "the passphrase is another one, or the file is damaged" if passphrase else "it is no private key"
            raise Int8dError(f"{path}: {what}") from e
        if not isinstance(key, Ed25519PrivateKey):
            raise Int8dError(f"{path}: not an Ed25519 key; 'int8d-make keys init' makes such keys")
        return CryptoSigner(key)


def init(
    folder: Path,
    root_keys: int = 3,
    root_threshold: int = 2,
    passphrase: bytes | None = None,
    root_days: float = Expiry.root,
) -> Keys:
    """Makes the keys of all roles, and the first root metadata: valid for ``root_days``.

    Raises ``Int8dError`` where there are keys already, and OSError.
    """
    if not 1 <= root_threshold <= root_keys <= 100:
        raise Int8dError(
            f"a threshold of {root_threshold} of {root_keys} root keys: it takes 1 at least, and all at most"
        )
    if folder.exists() and any(folder.iterdir()):
        raise Int8dError(f"{folder} is not empty, and keys are never overwritten: name another folder")
    keys = Keys(folder, passphrase)
    root = Root(version=1, expires=after(root_days), consistent_snapshot=True)
    for role, count in (("root", root_keys), *((role, 1) for role in ONLINE)):
        for _ in range(count):
            root.add_key(keys.add(role).public_key, role)
    root.roles["root"].threshold = root_threshold
    metadata = Metadata(root)
    keys.sign("root", metadata, root)
    write_atomically(keys.root, metadata.to_bytes())
    return keys


def passphrase_in(path: Path | None) -> bytes | None:
    """A file's first line. Raises ``Int8dError`` where it is empty."""
    if path is None:
        return None
    phrase = path.read_bytes().split(b"\n")[0].strip()
    if not phrase:
        raise Int8dError(f"{path}: its first line is the passphrase, and it is empty")
    return phrase
