"""What of a repository's folder anybody may read: files below ``metadata/`` and ``targets/``, and nothing beside."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from agent.errors import Int8dError

# No name begins with a dot: neither . and .. nor what is being written.
_SERVED = re.compile(r"(metadata|targets)(/[A-Za-z0-9_-][A-Za-z0-9_.+@=-]{0,254}){1,6}")


class Folder:
    """Reads pieces of its files. Raises ``Int8dError`` where there is no ``metadata/`` in it."""

    def __init__(self, root: Path) -> None:
        if not (root / "metadata").is_dir():
            raise Int8dError(f"{root}: no repository (there is no folder 'metadata'); int8d-make publish makes one")
        self._root = root

    def read(self, path: str, offset: int, length: int) -> tuple[bytes, int, str]:
        """At most ``length`` bytes from ``offset`` on, the size of the whole, and a word that changes with the file.

        Raises ``FileNotFoundError`` for all that is not served, and other ``OSError`` where it can't be read.
        """
        if not _SERVED.fullmatch(path):
            raise FileNotFoundError(path)
        file = self._open(path.split("/"))
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(path)
            data = os.pread(file, length, offset)
            return data, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
        finally:
            os.close(file)

    def _open(self, names: list[str]) -> int:
        """Step by step, so that no link on the way leads elsewhere, whenever it is put there."""
        at = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in names[:-1]:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            # O_NONBLOCK: a pipe in the folder must not hold us up.
            return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise FileNotFoundError("/".join(names)) from e
        except OSError as e:
            if e.errno == errno.ELOOP:  # a link
                raise FileNotFoundError("/".join(names)) from e
            raise
        finally:
            os.close(at)
