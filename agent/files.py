"""State on disk: where it lies, and the one helper that writes it, so that a reader sees the old file or the new one,
whole.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes, mode: int = 0o644) -> None:
    """Writes to a temporary file beside ``path``, fsyncs, renames, and fsyncs the folder. Raises OSError."""
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def state_folder() -> Path:
    """The folder for state that systemd gives, else the user's own; not made yet."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    user = os.environ.get("XDG_STATE_HOME", "")
    return Path(user or os.path.expanduser("~/.local/state")) / "int8d"
