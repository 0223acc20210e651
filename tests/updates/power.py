"""A power cut, and what a disk may have lost by then.

    with PowerCut(folder, at=17, loses="all") as cut:      # in the middle of the 17th change of the disk
        ...                                                # raises Cut
    cut.leave(copy)                                        # the folder, as the next start finds it

The calls that change a disk are watched while they go to a real folder. A file's bytes are safe since its last fsync,
a name in a folder since the folder's last. ``loses``: what becomes of the rest. ``all``: none of it was written.
``bytes``: names were, bytes were not, as ext4 does after a rename without fsync. ``some``: of each file and name, a
coin decides.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

Loses = Literal["all", "bytes", "some"]
LOSSES: tuple[Loses, ...] = ("all", "bytes", "some")
_CALLS = ("fsync", "replace", "rename", "symlink", "unlink", "rmdir", "mkdir")


class Cut(BaseException):
    """The power is gone; no handler of errors may catch it."""


class PowerCut:
    """at: before which change the power fails, counted from 0; what comes later does nothing. points: how many there
    were.
    """

    def __init__(self, folder: Path, at: int = 1 << 30, loses: Loses = "all", seed: int = 0) -> None:
        self._root, self._at, self._loses = folder, at, loses
        self._random = random.Random(f"{seed} {at} {loses}")
        self._bytes: dict[int, bytes] = {}  # by inode, as of the last fsync
        self._names: dict[int, dict[str, int]] = {}  # by a folder's inode
        self._links: dict[int, str] = {}
        self._held: dict[int, int] = {}  # descriptors, so that no inode's number is given to another file
        self._patch = pytest.MonkeyPatch()
        self.points = 0
        for path in [folder, *folder.rglob("*")]:  # what was there before is safe
            self._secure(path)

    def __enter__(self) -> PowerCut:
        for name in _CALLS:
            self._patch.setattr(os, name, self._watched(name, getattr(os, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.points += 1
            if self.points > self._at:
                raise Cut(name)
            result = call(*args, **kwargs)
            if name == "fsync":
                self._secure(Path(os.readlink(f"/proc/self/fd/{args[0]}")))
            return result

        return watched

    def _secure(self, path: Path) -> None:
        found = self._hold(path)
        if stat.S_ISDIR(found.st_mode):
            names = {}
            for name in os.listdir(path):
                entry = self._hold(path / name)
                names[name] = entry.st_ino
                if stat.S_ISLNK(entry.st_mode):
                    self._links[entry.st_ino] = os.readlink(path / name)
            self._names[found.st_ino] = names
        elif stat.S_ISREG(found.st_mode):
            self._bytes[found.st_ino] = path.read_bytes()

    def _hold(self, path: Path) -> os.stat_result:
        found = os.lstat(path)
        if found.st_ino not in self._held:
            self._held[found.st_ino] = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        return found

    # What is left

    def leave(self, to: Path) -> None:
        """Writes what the disk holds after the cut into a new folder; once."""
        here = {os.lstat(p).st_ino: p for p in [self._root, *self._root.rglob("*")]}
        self._copy(os.lstat(self._root).st_ino, here, to)
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _copy(self, folder: int, here: dict[int, Path], to: Path) -> None:
        to.mkdir()
        path = here.get(folder)
        seen = {n: os.lstat(path / n).st_ino for n in os.listdir(path)} if path is not None else {}
        safe = self._names.get(folder, {})
        for name in sorted({*seen, *safe}):
            lost = self._loses == "all" or (self._loses == "some" and self._random.random() < 0.5)
            inode = safe.get(name) if lost else seen.get(name)
            if inode is not None:
                self._entry(inode, here.get(inode), here, to / name)

    def _entry(self, inode: int, path: Path | None, here: dict[int, Path], to: Path) -> None:
        if inode in self._links or (path is not None and path.is_symlink()):
            to.symlink_to(self._links[inode] if path is None else os.readlink(path))
        elif inode in self._names or (path is not None and path.is_dir()):
            self._copy(inode, here, to)
        else:
            safe = self._bytes.get(inode, b"")
            written = path.read_bytes() if path is not None else safe
            kept = self._loses == "some" and self._random.random() < 0.5
            to.write_bytes(written if kept else safe)
