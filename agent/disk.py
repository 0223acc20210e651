"""Every change that updates make on disk goes through here, so that a test can lose what was not synced.

After a call returns, what it promises survives a power cut: files are fsynced before they get their name, folders after
a name in them has changed.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from agent.files import write_atomically
from agent.repository.reasons import Refused


class Disk:
    """The real one."""

    def write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """A file, whole: the old one or the new one."""
        write_atomically(path, data, mode)

    def folder(self, path: Path) -> None:
        """Makes a folder and those above it."""
        missing = []
        at = path
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        path.mkdir(parents=True, exist_ok=True)
        for made in missing:
            self.sync(made.parent)

    def sync(self, path: Path) -> None:
        """Forces a file or a folder to the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_tree(self, path: Path) -> None:
        """All below a folder, and the folder."""
        for root, _, files in os.walk(path):
            for name in files:
                if not os.path.islink(os.path.join(root, name)):
                    self.sync(Path(root, name))
            self.sync(Path(root))

    def rename(self, old: Path, new: Path) -> None:
        """In one step; ``new`` is replaced."""
        os.replace(old, new)
        self.sync(new.parent)
        if old.parent != new.parent:
            self.sync(old.parent)

    def link(self, path: Path, target: str) -> None:
        """A symbolic link, swapped in one step."""
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, path)
        self.sync(path.parent)

    def remove(self, path: Path) -> None:
        """A file, a link, or a folder with all that is in it; nothing where nothing is."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self.sync(path.parent)

    def free_bytes(self, path: Path) -> int:
        """What a service may still write where ``path`` lies."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


def of_disk(error: OSError, where: Path | None = None) -> Refused:
    """Why an update can't go on, where writing has failed. where: if the error does not know."""
    place = error.filename or where or "the state folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused("no_space", f"the disk of {place} is full: make room")
    return Refused("disk", f"{place} can't be written: {error.strerror or error}")
