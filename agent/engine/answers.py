"""Remembers what the tuner found: a small JSON file for each model, CPU, instruction set and number of threads.

    engine = load("model.safetensors", threads=2, tuning=Tuning(default_folder(), budget_s=3.0))

What can't be read, is damaged, or was found with other kernels counts as not remembered, and is replaced.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zlib
from pathlib import Path

import msgspec
import numpy as np

from agent.engine import native
from agent.engine.batch_times import BatchTimes
from agent.engine.tuner import Answer
from agent.files import state_folder, write_atomically
from agent.modelfile import Model

_MOST_BYTES = 4 << 20
_BATCHES = "-batches.json"
_MOST_FILES = 100  # of each kind
log = logging.getLogger(__name__)


class Key(msgspec.Struct, frozen=True):
    """What an answer holds for. model: a digest of its graph and constants; kernels: of the extension."""

    model: str
    cpu: str
    isa: str
    threads: int
    kernels: str

    @property
    def file(self) -> str:
        """The answer's file: new kernels write over what the old ones found."""
        text = "\n".join((self.model, self.cpu, self.isa, str(self.threads)))
        return hashlib.sha256(text.encode()).hexdigest()[:24] + ".json"


class Remembered(msgspec.Struct, frozen=True):
    """A file's content. name: the model's, for people. made: seconds since 1970."""

    key: Key
    name: str
    made: float
    answer: Answer


class RememberedBatches(msgspec.Struct, frozen=True):
    """As ``Remembered``, in a file beside it, of inputs that are computed together."""

    key: Key
    name: str
    made: float
    times: BatchTimes


class Tuning:
    """What ``load`` shall do about the tuner.

    folder: where answers lie. budget_s: how long to tune a model that has no answer yet, in seconds; 0: use what is
    remembered, and never tune. again: tune even so.
    """

    def __init__(self, folder: str | os.PathLike[str], budget_s: float = 0.0, again: bool = False) -> None:
        self.folder, self.budget_s, self.again = Path(folder), budget_s, again
        self._warned = False

    def recall(self, key: Key) -> Remembered | None:
        """What was remembered for the key, or None."""
        try:
            with open(self.folder / key.file, "rb") as file:
                found = msgspec.json.decode(file.read(_MOST_BYTES), type=Remembered)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return found if found.key == key else None

    def remember(self, key: Key, name: str, answer: Answer) -> Remembered:
        """Writes an answer; where that is impossible, says so once."""
        made = Remembered(key, name, time.time(), answer)
        self._write(key.file, made)
        return made

    def recall_batches(self, key: Key) -> BatchTimes | None:
        """What was remembered of inputs that are computed together, or None."""
        try:
            with open(self.folder / _beside(key), "rb") as file:
                found = msgspec.json.decode(file.read(_MOST_BYTES), type=RememberedBatches)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        sound = found.key == key and 1 in found.times.microseconds and min(found.times.microseconds.values()) > 0
        return found.times if sound else None

    def remember_batches(self, key: Key, name: str, times: BatchTimes) -> BatchTimes:
        """As ``remember``."""
        self._write(_beside(key), RememberedBatches(key, name, time.time(), times))
        return times

    def _write(self, file: str, made: Remembered | RememberedBatches) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / file, msgspec.json.format(msgspec.json.encode(made), indent=1))
            self._forget()
        except OSError as e:
            if not self._warned:
                self._warned = True
                log.warning("%s: can't be written (%s): models will be tuned again at the next start; name another "
                            "folder, or set enabled = false under [tuner]", self.folder, e.strerror)  # fmt: skip

    def _forget(self) -> None:
        """Removes the oldest files: models come and go."""
        files = sorted((f.stat().st_mtime, f) for f in self.folder.glob("*.json"))
        for kind in (True, False):
            alike = [file for _, file in files if file.name.endswith(_BATCHES) == kind]
            for file in alike[:-_MOST_FILES]:
                file.unlink()


def _beside(key: Key) -> str:
    return key.file.removesuffix(".json") + _BATCHES


def default_folder() -> Path:
    """In the state folder."""
    return state_folder() / "tuner"


def key_of(model: Model, isa: str, threads: int) -> Key:
    """isa: as ``load`` takes it. Raises ValueError where it is not here."""
    digest = hashlib.sha256(msgspec.json.encode(model.header.graph))
    for name in sorted(model.constants):
        array = model.constants[name]
        check = zlib.crc32(np.ascontiguousarray(array).data)
        digest.update(f"{name} {array.dtype} {array.shape} {check}\n".encode())
    return Key(digest.hexdigest()[:32], native.cpu(), native.resolve_isa(isa), threads, native.kernels_digest())
