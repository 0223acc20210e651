"""A model file as it lies on the disk becomes a path that ``agent.modelfile.read`` can map, decrypted where need be.

    with open_model("models/3f…/model", release, "box1.age") as path:
        model = read(path)

What is encrypted with age is decrypted piece by piece into memory that has a file descriptor and no name
(``memfd_create``), so that the plaintext is on no disk. It is sealed before it is read, and freed with the last map of
it: close the context as soon as the model is read, and drop the model when it has served. Its pages may be swapped, as
any memory may: the unit sets ``MemorySwapMax=0``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent.errors import ConfigError, ModelError
from agent.repository.reasons import Refused
from agent.repository.release import Release
from agent.updates import identity


@contextmanager
def open_model(path: str | os.PathLike[str], release: Release, key_file: str | None) -> Iterator[str]:
    """A path to the model's plaintext, for as long as the context is open; what was mapped stays.

    key_file: the device's identities, for ``release.encryption == "age"``.
    Raises ``Refused``: ``no_key`` where no identity opens it, ``damaged`` where the plaintext is not what the release
    says, ``memory_budget`` where there is not enough memory for it, ``disk`` where the file can't be read.
    """
    if release.encryption == "none":
        yield os.fspath(path)
        return
    identities = _identities(release, key_file)
    memory = os.memfd_create("int8d-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _decrypt(path, memory, release, identities)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        name = f"/proc/self/fd/{memory}"
        try:
            yield name
        except ModelError as e:  # a name that means nothing to people
            raise ModelError(str(e).replace(name, os.fspath(path))) from e
    finally:
        os.close(memory)


def _identities(release: Release, key_file: str | None) -> list[Any]:
    if not key_file:
        raise Refused(
            "no_key",
            f"release {release.release} of '{release.model}' is encrypted and this device has no key: make one with "
            "int8d key new FILE --age, name it as key under [updates], and publish with --encrypt-to and what that "
            "command prints",
        )
    try:
        return identity.load(key_file)
    except ConfigError as e:
        raise Refused("no_key", str(e)) from e


def _decrypt(path: str | os.PathLike[str], memory: int, release: Release, identities: list[Any]) -> None:
    import pyrage

    sink = _Sink(memory, release.plaintext_bytes)
    try:
        with open(path, "rb") as file:
            # Not pyrage.decrypt, which keeps the interpreter's lock until all is done.
            pyrage.decrypt_io(file, sink, identities)
    except pyrage.DecryptError as e:
        if "matching keys" not in str(e):  # all it tells
            raise Refused("damaged", f"{path}: can't be decrypted: {e}") from e
        own = ", ".join(str(i.to_public()) for i in identities)
        raise Refused(
            "no_key",
            f"release {release.release} of '{release.model}' is encrypted for other keys; publish it with "
            f"--encrypt-to {own}",
        ) from e
    except OSError as e:
        # The disk's errors have a number; the library's own, of a piece that is not authentic, has none.
        raise Refused("damaged" if e.errno is None else "disk", f"{path}: can't be decrypted: {e}") from e
    if sink.bytes != release.plaintext_bytes or sink.digest.hexdigest() != release.plaintext_sha256:
        raise Refused("damaged", f"{path}: what is inside is not what its release says")


class _Sink:
    """What ``pyrage`` writes to: the memory, as much as was promised, and its digest."""

    def __init__(self, memory: int, most: int) -> None:
        self._memory, self._most = memory, most
        self.bytes = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        if self.bytes > self._most:
            raise Refused("damaged", f"more plaintext than the {self._most:,} bytes that its release says")
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._memory, left) :]
        except OSError as e:
            raise Refused("memory_budget", f"no memory for {self._most:,} bytes of plaintext ({e.strerror})") from e
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        pass  # memory
