"""Where releases lie on the device, whole or not at all.

models/<sha256>/model, release.json     immutable; named after the file's own hash
served/<model>/current, previous        links to what serves and what served before; none: int8d.toml's own file
served/<model>/staging/<sha256>.part    what is being fetched
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from agent.disk import Disk
from agent.repository.release import Target

_CHUNK = 1 << 20


class Store:
    """The releases of one device. folder: of its updates."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, self._disk = folder, disk
        self._models = folder / "models"

    def of(self, model: str) -> Path:
        """The folder of a model's journal and links."""
        return self.folder / "served" / model

    def part(self, model: str, sha256: str) -> Path:
        """Where a file is fetched to. Its folder is made."""
        folder = self.of(model) / "staging"
        self._disk.folder(folder)
        return folder / f"{sha256}.part"

    def file(self, target: Target) -> Path:
        """A release's file, as it was signed."""
        return self._models / target.sha256 / "model"

    def has(self, target: Target) -> bool:
        """Whether the file is there, and every byte as it was signed."""
        path = self.file(target)
        try:
            return path.stat().st_size == target.bytes and sha256_of(path) == target.sha256
        except OSError:
            return False

    def put(self, model: str, target: Target) -> None:
        """Takes a fetched and verified file in. After a death in between, it can be called again."""
        final, new = self._models / target.sha256, self._models / f".{target.sha256}.new"
        part = self.part(model, target.sha256)
        if final.exists():  # of another model, or damaged
            self._disk.remove(final)
        self._disk.folder(new)
        self._disk.write(new / "release.json", msgspec.json.encode(target))
        if part.exists():
            os.chmod(part, 0o444)
            self._disk.sync(part)
            self._disk.rename(part, new / "model")
        self._disk.rename(new, final)

    def target(self, link: Path) -> Target | None:
        """What a link leads to, by its ``release.json``; None where there is none that can be read."""
        try:
            return msgspec.json.decode((link / "release.json").read_bytes(), type=Target)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def current(self, model: str) -> Target | None:
        """What ``current`` leads to."""
        return self.target(self.of(model) / "current")

    def previous(self, model: str) -> Target | None:
        """What ``previous`` leads to."""
        return self.target(self.of(model) / "previous")

    def lead(self, model: str, current: Target | None, previous: Target | None) -> None:
        """Swaps the links, where they lead elsewhere. None: int8d.toml's own file, and no link."""
        for name, target in (("previous", previous), ("current", current)):
            link = self.of(model) / name
            wanted = None if target is None else f"../../models/{target.sha256}"
            found = os.readlink(link) if link.is_symlink() else None
            if wanted is not None and found != wanted:
                self._disk.folder(link.parent)
                self._disk.link(link, wanted)
            elif wanted is None and found is not None:
                self._disk.remove(link)

    def tidy(self, keep: Collection[str]) -> None:
        """Removes every release but those with these hashes."""
        if not self._models.is_dir():
            return
        for path in self._models.iterdir():
            if path.name not in keep and path.name.removeprefix(".").removesuffix(".new") not in keep:
                self._disk.remove(path)

    def tidy_staging(self, model: str, keep: str = "") -> None:
        """Removes what was begun to be fetched and is not wanted any more."""
        folder = self.of(model) / "staging"
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name != f"{keep}.part":
                    self._disk.remove(path)


def sha256_of(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(_CHUNK)
        view = memoryview(buffer)
        while n := file.readinto(buffer):
            digest.update(view[:n])
    return digest.hexdigest()
