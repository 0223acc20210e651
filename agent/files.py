"""State on disk: where it lies, and the one helper that writes it, so that a reader sees the old file or the new one,
whole; and how a new key is written.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from agent.errors import ConfigError


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


def write_new_secret(path: str, data: bytes) -> None:
    """A new file that its owner alone can read. Raises ``ConfigError`` where there is such a file, or can't be."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError as e:
        raise ConfigError(f"{path}: is there already; a key that is overwritten is lost") from e
    except OSError as e:
        raise ConfigError(f"{path}: can't be written ({e.strerror})") from e


def state_folder() -> Path:
    """The folder for state that systemd gives, else the user's own; not made yet."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    user = os.environ.get("XDG_STATE_HOME", "")
    return Path(user or os.path.expanduser("~/.local/state")) / "int8d"
