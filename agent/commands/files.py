"""What several commands do with files: read them, and name their content type."""

from __future__ import annotations

from pathlib import Path

from agent.errors import InputError

_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".bmp": "image/bmp",
          ".json": "application/json", ".npy": "application/x-npy", ".bin": "application/octet-stream"}  # fmt: skip


def read(path: str) -> tuple[bytes, str | None]:
    """A file's bytes, and the content type that its name stands for, or None."""
    try:
        return Path(path).read_bytes(), _TYPES.get(Path(path).suffix.lower())
    except OSError as e:
        raise InputError(f"{path}: can't be read ({e.strerror})") from e
